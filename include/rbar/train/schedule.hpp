// The learning rate over a run: linear warm-up, then constant or a cosine down to a share of the peak
// (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts).
#pragma once

#include "rbar/core/error.hpp"
#include "rbar/core/tensor.hpp"

#include <cmath>
#include <numbers>
#include <string_view>

namespace rbar {

enum class ScheduleKind { constant, cosine };

constexpr const char* name_of(ScheduleKind kind) { return kind == ScheduleKind::cosine ? "cosine" : "constant"; }
constexpr bool parse(std::string_view text, ScheduleKind& kind) {
  for (const auto candidate : {ScheduleKind::constant, ScheduleKind::cosine})
    if (text == name_of(candidate)) return kind = candidate, true;
  return false;
}

struct ScheduleConfig {
  ScheduleKind schedule = ScheduleKind::cosine;
  Index warmup_steps = 100;
  double min_ratio = 0.1;  // the cosine ends at this share of the peak

  template <class V>
  void fields(V&& v) {
    v("schedule", schedule);
    v("warmup_steps", warmup_steps);
    v("min_ratio", min_ratio);
  }

  void validate() const {
    require(warmup_steps >= 0, "ScheduleConfig", "warmup_steps", "at least 0", warmup_steps);
    require(min_ratio >= 0 && min_ratio <= 1, "ScheduleConfig", "min_ratio", "in [0, 1]", min_ratio);
  }

  // Share of the peak at `step` (from 0) of `steps`. Warm-up gives (step+1)/warmup_steps, so the first
  // step learns; the cosine starts at the end of the warm-up and reaches min_ratio with the last step.
  double factor(Index step, Index steps) const {
    if (step < warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
    if (schedule == ScheduleKind::constant) return 1;
    const Index length = steps - 1 - warmup_steps;
    if (length <= 0 || step >= steps - 1) return step >= steps - 1 ? min_ratio : 1;
    const double progress = static_cast<double>(step - warmup_steps) / static_cast<double>(length);
    return min_ratio + (1 - min_ratio) * (1 + std::cos(std::numbers::pi * progress)) / 2;
  }
};

}  // namespace rbar
