// Training progress for people: on a terminal one bar that is redrawn, elsewhere a plain line now and then.
//   [=========>          ]  47%  step 704/1500  loss 1.8341  12345 tokens/s  ETA 0:01:12
#pragma once

#include "rbar/train/trainer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace rbar {

inline bool is_terminal(std::FILE* file) {
#if __has_include(<unistd.h>)
  return ::isatty(::fileno(file)) == 1;
#else
  return file == nullptr;
#endif
}

// Loss and speed are running means over about the last 20 steps; the time left counts everything that
// happened between the steps of this process, evaluations included.
class Progress {
 public:
  explicit Progress(Index lines_every = 50, std::FILE* out = stderr) : Progress(lines_every, out, is_terminal(out)) {}
  Progress(Index lines_every, std::FILE* out, bool terminal)
      : lines_every_(std::max<Index>(1, lines_every)), out_(out), terminal_(terminal) {}
  Progress(Progress&&) = delete;  // also no copy: the destructor ends the line
  ~Progress() {
    if (line_open_) std::fputc('\n', out_);
  }

  void operator()(auto& /*trainer*/, StepReport& report) {
    const auto now = Clock::now();
    if (steps_ == 0) start_ = now - std::chrono::duration_cast<Clock::duration>(Seconds(report.seconds));
    ++steps_;
    // A plain mean first, an exponential one from the twentieth step on.
    const double weight = std::max(0.05, 1.0 / static_cast<double>(steps_));
    loss_ += weight * (report.loss - loss_);
    seconds_per_token_ += weight * (report.seconds / static_cast<double>(report.tokens) - seconds_per_token_);

    const bool final_line = report.last();
    const bool due = terminal_ ? now - drawn_ >= std::chrono::milliseconds(100)
                               : report.step % lines_every_ == 0 || report.evaluation.has_value() || report.step == 1;
    if (!due && !final_line) return;
    drawn_ = now;
    const double per_step = Seconds(now - start_).count() / static_cast<double>(steps_);
    const std::string text = line(report, per_step * static_cast<double>(report.steps - report.step));
    // "\r" to the start of the line, "ESC[K" clears what a longer line left behind.
    std::fprintf(out_, terminal_ ? "\r%s\x1b[K" : "%s\n", text.c_str());
    line_open_ = terminal_ && !final_line;
    if (terminal_ && final_line) std::fputc('\n', out_);
    std::fflush(out_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;

  std::string line(const StepReport& report, double seconds_left) {
    if (report.evaluation) {
      char validation[40];
      std::snprintf(validation, sizeof validation, "  validation %.4f", report.evaluation->nats);
      validation_ = validation;
    }
    std::string text;
    if (terminal_) {
      constexpr Index width = 20;
      const Index done = std::clamp<Index>(report.step * width / std::max<Index>(report.steps, 1), 0, width);
      text = "[" + std::string(static_cast<std::size_t>(done), '=') + (done < width ? ">" : "") +
             std::string(static_cast<std::size_t>(std::max<Index>(width - done - 1, 0)), ' ') + "] ";
      char percent[16];
      std::snprintf(percent, sizeof percent, "%3d%%  ",
                    static_cast<int>(report.step * 100 / std::max<Index>(report.steps, 1)));
      text += percent;
    }
    const auto left = std::llround(std::clamp(seconds_left, 0.0, 3e9));
    char rest[160];
    std::snprintf(rest, sizeof rest, "step %lld/%lld  loss %.4f%s  %.0f tokens/s  ETA %lld:%02lld:%02lld",
                  static_cast<long long>(report.step), static_cast<long long>(report.steps), loss_, validation_.c_str(),
                  1.0 / std::max(seconds_per_token_, 1e-12), left / 3600, left / 60 % 60, left % 60);
    return text + rest;
  }

  Index lines_every_;
  std::FILE* out_;
  bool terminal_;
  bool line_open_ = false;
  Index steps_ = 0;  // seen by this object
  double loss_ = 0;
  double seconds_per_token_ = 0;
  std::string validation_;
  Clock::time_point start_, drawn_{};
};

}  // namespace rbar
