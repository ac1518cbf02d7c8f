// The training loop: windows → forward → loss → backward → clip → AdamW → adapt, and nothing else.
// All that a run depends on is in TrainingConfig, the model and TrainingState: saving those three and
// going on elsewhere gives the bits of an uninterrupted run (io/checkpoint.hpp).
#pragma once

#include "rbar/nn/linear.hpp"
#include "rbar/train/adamw.hpp"
#include "rbar/train/data.hpp"
#include "rbar/train/evaluate.hpp"
#include "rbar/train/loss.hpp"
#include "rbar/train/schedule.hpp"

#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

namespace rbar {

struct TrainingConfig {
  Index steps = 1000;
  Index batch_size = 16;   // windows in one forward pass
  Index accumulation = 1;  // forward passes in one step: their mean gradient is that of one big batch
  Index window = 128;      // tokens in a window
  double clip_norm = 1;    // largest global norm of the gradient; 0 does not clip
  std::uint64_t seed = 1;  // of the windows and of dropout
  AdamWConfig optimizer = {};
  ScheduleConfig schedule = {};
  Products products = Products::fp32;  // of the model's large matrices, which stay fp32 themselves
  // Keep what goes into each layer, not what it computes, and compute that again in the backward pass: a fraction of
  // the memory for about a third more time, and the same bits. Hence no field: a run may go on either way.
  bool recompute = false;

  template <class V>
  void fields(V&& v) {
    v("steps", steps);
    v("batch_size", batch_size);
    v("accumulation", accumulation);
    v("window", window);
    v("clip_norm", clip_norm);
    v("seed", seed);
    optimizer.fields(v);
    schedule.fields(v);
    v("products", products);
  }

  void validate() const {
    require(steps >= 0, "TrainingConfig", "steps", "at least 0", steps);
    require(batch_size >= 1, "TrainingConfig", "batch_size", "at least 1", batch_size);
    require(accumulation >= 1, "TrainingConfig", "accumulation", "at least 1", accumulation);
    require(window >= 1, "TrainingConfig", "window", "at least 1", window);
    require(clip_norm >= 0 && std::isfinite(clip_norm), "TrainingConfig", "clip_norm", "at least 0", clip_norm);
    optimizer.validate();
    schedule.validate();
  }
};

// Where a run stands, beside the parameters and buffers of the model. Every random number of a run is
// counted (core/random.hpp), so these integers are also the whole state of its random numbers.
template <class T>
struct TrainingState {
  Index step = 0;         // steps completed; also the count from which dropout draws
  RandomWindows windows;  // position in the data
  AdamW<T> optimizer;     // moments and bias-correction step
  double best_nats = std::numeric_limits<double>::infinity();  // of the evaluations so far
  Index best_step = 0;                                         // after which it was measured
};

// What a callback sees after each step.
struct StepReport {
  Index step = 0;   // steps completed, this one included
  Index steps = 0;  // of the whole run
  Index tokens = 0;
  double loss = 0;            // mean nats per token over the batches of this step, before the update
  double auxiliary_loss = 0;  // what the model adds itself (auxiliary_loss_of); not part of `loss`
  double gradient_norm = 0;   // before clipping
  double learning_rate = 0;
  double seconds = 0;                    // time of this step without the callbacks
  std::optional<Evaluation> evaluation;  // set by a callback that evaluated, for those after it
  bool stop = false;                     // a callback may end the run here

  bool last() const { return stop || step >= steps; }
};

template <LanguageModel M>
class Trainer {
 public:
  using Scalar = typename M::Scalar;
  using Model = M;

  // Trains `model` in place. The trainer points into its tensors: the model must outlive it, and whoever assigns
  // another model to it meanwhile must copy, not move. It goes on to multiply as config.products says.
  Trainer(M& model, const TrainingConfig& config)
      : model_(model), config_(config), gradient_(zeros_like(model)), parameters_(model_), gradients_(gradient_) {
    config_.validate();
    if constexpr (requires { cache_.recompute; })
      cache_.recompute = config_.recompute;
    else
      require(!config_.recompute, "Trainer", "recompute", "false, for a model that cannot", true);
    if constexpr (std::is_same_v<Scalar, float> && requires { model_.linears([](auto&, const auto&...) {}); })
      set_products(model_, config_.products);
    else
      require(config_.products == Products::fp32, "Trainer", "products",
              "fp32, for a model without large matrices in float", "bf16");
    state.windows.seed = config_.seed;
    state.optimizer = AdamW<Scalar>(config_.optimizer);
    state.optimizer.allocate(parameters_.size());
  }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  M& model() { return model_; }
  const M& model() const { return model_; }
  const TrainingConfig& config() const { return config_; }
  const FlatParameters<Scalar>& parameters() const { return parameters_; }

  // One optimiser step on random windows of `tokens`. Throws without having changed the model or the
  // state when the loss or the gradient is not finite.
  StepReport step(TokenSpan tokens) {
    const auto start = std::chrono::steady_clock::now();
    if (!std::exchange(gradient_is_zero_, false)) gradients_.set_zero();
    RandomWindows windows = state.windows;
    StepReport report;
    for (Index pass = 0; pass < config_.accumulation; ++pass) {
      windows.next(tokens, config_.batch_size, config_.window, batch_);
      report.loss += forward_backward(pass) / static_cast<double>(config_.accumulation);
      report.auxiliary_loss += auxiliary_loss_of(cache_) / static_cast<double>(config_.accumulation);
    }
    const double mean = 1.0 / static_cast<double>(config_.accumulation);
    report.step = state.step + 1;
    report.steps = config_.steps;
    report.tokens = config_.accumulation * batch_.inputs.size();
    report.gradient_norm = global_norm(gradients_) * mean;
    require_finite_number("gradient norm", report.gradient_norm);
    report.learning_rate = config_.optimizer.learning_rate * config_.schedule.factor(state.step, config_.steps);
    state.optimizer.step(parameters_, gradients_, report.learning_rate,
                         mean * clip_factor(report.gradient_norm, config_.clip_norm), GradientAfterStep::zero);
    gradient_is_zero_ = true;
    if constexpr (requires { model_.adapt(std::as_const(cache_)); }) model_.adapt(std::as_const(cache_));
    state.windows = windows;
    ++state.step;
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
  }

  // Steps until config().steps are done or a callback asks to stop. After every step each callback is
  // called, in order, as callback(*this, report).
  template <class... Callbacks>
  void train(TokenSpan tokens, Callbacks&&... callbacks) {
    while (state.step < config_.steps) {
      StepReport report = step(tokens);
      (callbacks(*this, report), ...);
      if (report.stop) break;
    }
  }

  TrainingState<Scalar> state;

 private:
  // Adds the gradient of the mean loss over one batch; returns that loss.
  double forward_backward(Index pass) {
    if constexpr (requires { cache_.dropout; }) {
      const auto count = static_cast<std::uint64_t>(state.step * config_.accumulation + pass);
      cache_.dropout = {true, config_.seed, count};
    }
    const auto inputs = view(std::as_const(batch_.inputs));
    const auto targets = view(std::as_const(batch_.targets));
    model_.forward(inputs, logits_, cache_);
    const Tensor<Scalar, 3>& logits = logits_;
    const double loss = cross_entropy<Scalar>(view(logits), targets, &logits_);  // logits_ is now the gradient
    require_finite_number("loss", loss);
    model_.backward(view(logits), cache_, gradient_);
    return loss;
  }

  void require_finite_number(const char* what, double value) const {
    if (std::isfinite(value)) [[likely]]
      return;
    throw Error("Trainer::step", what + (" of step " + std::to_string(state.step + 1)), "a finite number",
                std::to_string(value));
  }

  M& model_;
  TrainingConfig config_;
  M gradient_;
  FlatParameters<Scalar> parameters_, gradients_;
  bool gradient_is_zero_ = true;
  // Buffers of a step, kept so that the second step allocates nothing.
  TokenBatch batch_;
  Tensor<Scalar, 3> logits_;
  typename M::Cache cache_;
};

}  // namespace rbar
