// Models of d = 512 with 8 heads, feed-forward 2048 and a vocabulary of 256 bytes: `standard_*` is the GPT-2 style
// transformer, `cort_*` the CoRT package's (its own, leaking routing: the same numbers as the package computes).
// `*_forward LAYERS BATCH TOKENS`, with weights packed for inference, and `*_training LAYERS BATCH TOKENS`: forward,
// cross-entropy, backward, AdamW.
#include "row.hpp"

#include "../training_step.hpp"

#include "rbar/model/cort.hpp"

namespace {

using namespace rbar;

template <class Model>
auto config_of(Index layers, Index tokens) {
  if constexpr (std::is_same_v<Model, TransformerModel<float>>) {
    TransformerConfig config = bench::six_layers(tokens);
    config.n_layers = layers;
    return config;
  } else {
    CoRTConfig config = CoRTConfig::small();
    config.vocab_size = 256;
    config.n_layers = layers;
    config.max_seq_len = tokens;
    config.dropout = 0;
    config.causality = Causality::reference;
    return config;
  }
}

double forward_flops(const TransformerConfig& config, Index batch, Index tokens) {
  return bench::training_flops(config, batch, tokens) / 3;
}
double forward_flops(const CoRTConfig& config, Index batch, Index tokens) {
  return flops(config, tokens, config.route_frac).total() * static_cast<double>(batch * tokens);
}

// Written by the first run: the logits of the untrained model, or the losses of its first two steps: an error of the
// gradients or of the optimiser would show in the second.
template <class Model>
peers::Row row(std::span<const Index> sizes, bool training) {
  struct Setting {
    bench::TrainingStep<Model> step;
    Tensor<float, 3> logits;
    Tensor<float, 1> losses{2};
    bool started = false;
  };
  const Index layers = sizes[0], batch = sizes[1], tokens = sizes[2];
  const auto config = config_of<Model>(layers, tokens);
  const std::shared_ptr<Setting> s(new Setting{{config, batch, tokens}, {}});
  peers::Row row;
  row.flops = (training ? 3 : 1) * forward_flops(config, batch, tokens);
  row.inputs = {peers::numbers("tokens", s->step.tokens), peers::numbers("targets", s->step.targets)};
  row.add_parameters(s->step.model);
  if (training) {
    row.run = [=] {
      if (s->started) return static_cast<void>(s->step());
      for (float& loss : elements(s->losses)) loss = static_cast<float>(s->step());
      s->started = true;
    };
    row.outputs = [=] { return std::vector{peers::numbers("y", s->losses)}; };
  } else {
    row.run = [=] {
      if (!std::exchange(s->started, true)) pack_weights(s->step.model);  // once the peer has its copy
      s->step.model.forward(view(std::as_const(s->step.tokens)), s->logits, s->step.cache);
    };
    row.outputs = [=] { return std::vector{peers::numbers("y", s->logits)}; };
  }
  return row;
}

template <class Model>
peers::Family family(bool training) {
  return [training](std::span<const Index> sizes) { return row<Model>(sizes, training); };
}

}  // namespace

int main(int argc, char** argv) {
  using Standard = TransformerModel<float>;
  using CoRT = CoRTModel<float>;
  return rbar::peers::serve(argc, argv,
                            {{"standard_forward", family<Standard>(false)},
                             {"standard_training", family<Standard>(true)},
                             {"cort_forward", family<CoRT>(false)},
                             {"cort_training", family<CoRT>(true)}});
}
