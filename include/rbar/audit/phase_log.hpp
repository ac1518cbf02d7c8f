// How the phases of a phase-modulated model develop over training: a callback (train/callbacks.hpp) that measures them
// on a text now and then and writes one line a layer,
//   step,layer,R_mean,coupling,temperature,gate,alpha,beta,attention_entropy
#pragma once

#include "rbar/audit/phase_metrics.hpp"
#include "rbar/train/callbacks.hpp"

#include <cstdio>
#include <filesystem>
#include <utility>

namespace rbar {
inline namespace audit {

// After the first step, every `every` steps, and after the last.
class PhaseLog {
 public:
  PhaseLog(std::filesystem::path path, TokenSpan text, Index every, const PhaseMetricsOptions& options = {})
      : csv_(std::move(path), "step,layer,R_mean,coupling,temperature,gate,alpha,beta,attention_entropy"),
        text_(text),
        every_(every),
        options_(options) {
    require(every >= 1, "PhaseLog", "every", "at least 1", every);
  }

  void operator()(auto& trainer, StepReport& report) {
    if (report.step != 1 && report.step % every_ != 0 && !report.last()) return;
    const PhaseMetrics metrics = phase_metrics(std::as_const(trainer).model(), text_, options_);
    csv_.append(report.step, [&](std::FILE* out) {
      for (std::size_t l = 0; l < metrics.layers.size(); ++l) {
        const auto& layer = metrics.layers[l];
        std::fprintf(out, "%lld,%zu,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g\n", static_cast<long long>(report.step), l,
                     layer.R_mean, layer.coupling, layer.temperature, layer.gate, layer.alpha, layer.beta,
                     layer.attention_entropy);
      }
    });
  }

 private:
  StepCsv csv_;
  TokenSpan text_;
  Index every_;
  PhaseMetricsOptions options_;
};

}  // namespace audit
}  // namespace rbar
