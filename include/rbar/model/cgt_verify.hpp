// The contract of a Coherence-Gated Transformer's output, in its type: a token's logits are either emitted, with a
// final energy within the bound, or refused. Nothing above the bound gets out silently.
//   E₃ ≤ θ_max: emitted from the lane it was routed to;
//   else it alone goes one lane further and is measured again: emitted from there if E₃ ≤ θ_max, else refused.
#pragma once

#include "rbar/core/tensor.hpp"
#include "rbar/routing/lane_trace.hpp"

#include <cmath>
#include <limits>
#include <span>
#include <variant>
#include <vector>

namespace rbar {

struct InferOptions {
  double pressure = 0;  // in [0, 1]: more tokens stop early (routing/pressure.hpp)
  double max_energy = std::numeric_limits<double>::infinity();  // a bound below the model's own θ_max

  void validate() const {
    require(pressure >= 0 && pressure <= 1, "InferOptions", "pressure", "0 to 1", pressure);
    require(max_energy >= 0, "InferOptions", "max_energy", "at least 0", max_energy);
  }
};

// A token that may be used: its energy is within the bound. Only this opens CGTOutput::logits.
class Emission {
 public:
  double energy() const { return energy_; }   // normalised, of the final state
  ComputeLane lane() const { return lane_; }  // where it ended
  // Its energy sent it to escalate, or is above θ_deep after the last lane.
  bool uncertain() const { return uncertain_; }

 private:
  template <class T>
  friend class CGTOutput;
  Emission(Index row, const TokenTrace& trace)
      : row_(row),
        energy_(trace.energy_out),
        lane_(trace.lane),
        uncertain_(trace.routed == ComputeLane::escalate || trace.lane == ComputeLane::escalate) {}
  Index row_;  // of the packed logits
  double energy_;
  ComputeLane lane_;
  bool uncertain_;
};

// A token that may not: no lane that was tried brought its energy down to the bound.
struct Refusal {
  double energy = 0, bound = 0;
  ComputeLane lane = ComputeLane::reflex;  // the last one tried
};

using Verdict = std::variant<Emission, Refusal>;

// [batch, tokens] verdicts. The logits of refused tokens are never computed.
template <class T>
class CGTOutput {
 public:
  Index batch() const { return batch_; }
  Index tokens() const { return tokens_; }
  double bound() const { return bound_; }
  Index refused() const { return batch_ * tokens_ - emitted(); }
  Index emitted() const { return static_cast<Index>(emitted_rows_.size()); }

  // Errors: a token that is not there.
  const Verdict& at(Index b, Index t) const { return verdicts_[index(b, t)]; }
  const TokenTrace& trace(Index b, Index t) const { return traces_[index(b, t)]; }
  // [vocabulary], of a verdict of this output. Errors: another's, told by its place and energy.
  std::span<const T> logits(const Emission& emission) const {
    const auto place = static_cast<std::size_t>(emission.row_);
    require(emission.row_ < emitted() &&
                traces_[static_cast<std::size_t>(emitted_rows_[place])].energy_out == emission.energy_,
            "CGTOutput::logits", "emission", "one of this output", emission.row_);
    const Index vocabulary = logits_.dimension(2);
    return {logits_.data() + emission.row_ * vocabulary, static_cast<std::size_t>(vocabulary)};
  }

  // For the model that fills it: begin(); judge() every token in order; then the emitted states' logits.
  void begin(Index batch, Index tokens, double bound) {
    batch_ = batch;
    tokens_ = tokens;
    bound_ = bound;
    verdicts_.clear();
    traces_.clear();
    emitted_rows_.clear();
  }
  // trace.energy_out decides; it also sets trace.emitted. Errors: an energy that is not finite.
  void judge(TokenTrace trace) {
    require(std::isfinite(trace.energy_out), "CGTOutput", "final energy", "a finite number", trace.energy_out);
    trace.emitted = trace.energy_out <= bound_;
    if (trace.emitted) {
      verdicts_.push_back(Emission(emitted(), trace));
      emitted_rows_.push_back(static_cast<Index>(traces_.size()));
    } else {
      verdicts_.push_back(Refusal{trace.energy_out, bound_, trace.lane});
    }
    traces_.push_back(trace);
  }
  std::span<const Index> emitted_rows() const { return emitted_rows_; }  // into [batch·tokens], ascending
  Tensor<T, 3>& emitted_logits() { return logits_; }                     // [1, emitted, V]

 private:
  std::size_t index(Index b, Index t) const {
    require(b >= 0 && b < batch_ && t >= 0 && t < tokens_, "CGTOutput", "token", "one of the output's", t);
    return static_cast<std::size_t>(b * tokens_ + t);
  }

  Index batch_ = 0, tokens_ = 0;
  double bound_ = 0;
  std::vector<Verdict> verdicts_;
  std::vector<TokenTrace> traces_;
  std::vector<Index> emitted_rows_;
  Tensor<T, 3> logits_;
};

}  // namespace rbar
