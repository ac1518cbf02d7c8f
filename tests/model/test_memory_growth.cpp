// Every attention's memory grows with the number of tokens T, never with T²: what a forward and a backward pass ask the
// heap for, and the largest block of it, at T and at 4·T. A matrix of T × T bytes would be more than twice too much.
#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/kuramoto/phase_attention.hpp"
#include "rbar/kuramoto/phase_modulated_attention.hpp"
#include "rbar/kuramoto/torus_attention.hpp"
#include "rbar/nn/ssm.hpp"
#include "rbar/routing/routed_attention.hpp"
#include "rbar/sheaf/sheaf_attention.hpp"
#include "support/allocation_count.hpp"
#include "support/catch.hpp"

#include <thread>

using namespace rbar;

namespace {

constexpr Index width = 32, heads = 2, short_length = 1024, long_length = 4096;

Tensor<float, 3> random_tokens(Index tokens) {
  Tensor<float, 3> x(1, tokens, width);
  Rng rng(1);
  for (float& value : elements(x)) value = static_cast<float>(rng.normal());
  return x;
}

// A thread of its own, so that the memory that kernels keep from call to call counts each time.
template <class Layer>
test::AllocatedBytes bytes_of_passes(const Layer& layer, Index tokens) {
  const Tensor<float, 3> x = random_tokens(tokens);
  auto grad = zeros_like(layer);
  return test::bytes_allocated_in([&] {
    std::thread([&] {
      Tensor<float, 3> y, dx, dstate;
      typename Layer::Cache cache;
      if constexpr (requires { layer.coupling_map; }) {  // with a second input
        layer.forward(x, x, y, cache);
        layer.backward(y, cache, dx, dstate, grad);
      } else {
        layer.forward(x, y, cache);
        layer.backward(y, cache, dx, grad);
      }
    }).join();
  });
}

template <class Layer>
void check_growth(const Layer& layer) {
  set_num_threads(1);
  if (!test::counts_allocations) return;
  const auto few = bytes_of_passes(layer, short_length), many = bytes_of_passes(layer, long_length);
  constexpr double linear = static_cast<double>(long_length) / static_cast<double>(short_length);
  INFO("total " << few.total << " -> " << many.total << ", largest " << few.largest << " -> " << many.largest);
  CHECK(static_cast<double>(many.total) < 1.05 * linear * static_cast<double>(few.total));
  CHECK(static_cast<double>(many.largest) < 1.05 * linear * static_cast<double>(few.largest));
}

}  // namespace

TEST_CASE("dot-product attention's memory grows with the tokens") {
  for (const bool causal : {false, true}) {
    INFO("causal " << causal);
    MultiHeadAttentionConfig config;
    config.d_model = width, config.n_heads = heads, config.causal = causal;
    Rng rng(2);
    check_growth(MultiHeadAttention<float>(config, rng));
  }
}

TEST_CASE("sheaf attention's memory grows with the tokens, dense and block-sparse") {
  for (const bool sparse : {false, true}) {
    INFO("sparse " << sparse);
    SheafAttentionConfig config;
    config.d_model = width, config.n_heads = heads, config.sparsity.enabled = sparse;
    Rng rng(2);
    check_growth(SheafAttention<float>(config, rng));
  }
}

TEST_CASE("CoRT's routed attention's memory grows with the tokens") {
  for (const KeyValues key_values : all_key_values) {
    INFO(name_of(key_values));
    RoutedAttentionConfig config;
    config.router.router.d_model = width;
    config.n_heads = heads;
    config.key_values = key_values;
    Rng rng(2);
    check_growth(RoutedAttention<float>(config, rng));
  }
}

TEST_CASE("phase-modulated and torus attention's memory grows with the tokens") {
  Rng rng(2);
  PhaseModulatedAttentionConfig config;
  config.d_model = width, config.n_heads = heads, config.max_seq_len = long_length;
  check_growth(PhaseModulatedAttention<float>(config, rng));
  check_growth(KuramotoAttention<float>({.d_model = width, .n_heads = heads}, rng));
}

TEST_CASE("phase attention's and the selective state space's memory grows with the tokens") {
  Rng rng(2);
  PhaseAttentionConfig phase;
  phase.d_model = width, phase.kuramoto.n_heads = heads;
  check_growth(PhaseAttention<float>(phase, rng));
  SelectiveSSMConfig ssm;
  ssm.d_model = width;
  check_growth(SelectiveSSM<float>(ssm, rng));
}
