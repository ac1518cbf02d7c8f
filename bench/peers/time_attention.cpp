// Attention of 8 heads of 64, batch 1, on given queries, keys and values. `dot TOKENS CAUSAL` is dot-product attention;
// `sheaf TOKENS CAUSAL` has logits -beta ||q - k||^2, beta = 1 / (2 sqrt(64)), the squared norms of the keys included.
#include "row.hpp"

#include "rbar/attention/engine.hpp"
#include "rbar/sheaf/sheaf_score.hpp"

#include <cmath>

namespace {

using namespace rbar;

constexpr Index heads = 8, dim = 64;

struct Attention {
  Tensor<float, 3> query, key, value, output;
  Tensor<float, 2> norms;
  std::vector<float> beta = std::vector<float>(heads, static_cast<float>(0.5 / std::sqrt(double(dim))));
  bool causal;

  Attention(Index tokens, bool causal_) : norms(tokens, heads), causal(causal_) {
    std::uint64_t seed = 0;
    for (auto* tensor : {&query, &key, &value, &output}) {
      tensor->resize(1, tokens, heads * dim);
      peers::fill_normal(*tensor, ++seed);
    }
  }
  void run(const auto& score) {
    const auto attend_with = [&](const auto& mask) {
      attend<float>(heads_view(std::as_const(query), heads), heads_view(std::as_const(key), heads),
                    heads_view(std::as_const(value), heads), score, mask, heads_view(output, heads));
    };
    causal ? attend_with(CausalMask{}) : attend_with(FullMask{});
  }
  void dot() { run(DotProductScore{1 / std::sqrt(double(dim))}); }
  void sheaf() {
    square_norms(heads_view(std::as_const(key), heads), norms.data());
    run(SheafScore<float>{beta.data(), norms.data(), heads});
  }
};

peers::Row row(std::span<const Index> sizes, void (Attention::*attention)()) {
  const Index tokens = sizes[0];
  const bool causal = sizes[1] != 0;
  const auto x = std::make_shared<Attention>(tokens, causal);
  const double t = static_cast<double>(tokens), pairs = causal ? t * (t + 1) / 2 : t * t;
  return {4.0 * heads * dim * pairs,
          [=] { (*x.*attention)(); },
          {peers::numbers("query", x->query), peers::numbers("key", x->key), peers::numbers("value", x->value)},
          [=] { return std::vector{peers::numbers("y", x->output)}; },
          {}};
}

}  // namespace

int main(int argc, char** argv) {
  return rbar::peers::serve(argc, argv,
                            {{"dot", [](std::span<const Index> sizes) { return row(sizes, &Attention::dot); }},
                             {"sheaf", [](std::span<const Index> sizes) { return row(sizes, &Attention::sheaf); }}});
}
