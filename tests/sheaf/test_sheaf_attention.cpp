#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "sheaf/naive_sheaf.hpp"

using namespace rbar;
using naive::largest_difference;
using naive::random_hidden;
using naive::random_sheaf;

static_assert(StreamingLayer<SheafAttention<float>>);

TEST_CASE("sheaf attention follows its definition", "[sheaf attention]") {
  std::uint64_t seed = 1;
  for (const auto& config : naive::sheaf_configs())
    for (const auto& [batch, tokens] : {std::pair<Index, Index>{1, 1}, {2, 19}, {3, 5}}) {
      INFO(naive::describe(config) << ", batch " << batch << ", tokens " << tokens << ", seed " << ++seed);
      const auto layer = random_sheaf<double>(config, seed);
      const auto x = random_hidden<double>(batch, tokens, config.d_model, seed + 100);
      CHECK(largest_difference(layer(x), naive::sheaf_attention(layer, x)) <= 1e-11);
    }
}

TEST_CASE("sheaf attention in float stays within 1e-5 of its definition", "[sheaf attention]") {
  // Heads of 64 features of variance about 1: logits to about ±16, so 1e-6 of rounding in an expanded square.
  SheafAttentionConfig config;
  config.d_model = 192, config.n_heads = 3;
  for (const bool causal : {true, false}) {
    config.causal = causal;
    const auto layer = random_sheaf<float>(config, 5);
    Rng rng(1);
    SheafAttention<double> twin(config, rng);
    copy_parameters(layer, twin);
    const auto x = random_hidden<float>(1, 131, config.d_model, 6);
    Tensor<double, 3> wide(1, 131, config.d_model), y = wide;
    std::copy_n(x.data(), x.size(), wide.data());
    const Tensor<float, 3> narrow = layer(x);
    std::copy_n(narrow.data(), narrow.size(), y.data());
    const auto expected = naive::sheaf_attention(twin, wide);
    double largest = 0;
    for (const double value : elements(expected)) largest = std::max(largest, std::abs(value));
    CHECK(largest_difference(y, expected) <= 1e-5 * largest);
  }
}

TEST_CASE("with keys of equal norms sheaf attention is dot-product attention", "[sheaf attention]") {
  SheafAttentionConfig config;
  config.d_model = 24, config.n_heads = 3;
  MultiHeadAttentionConfig dot_config;
  dot_config.d_model = 24, dot_config.n_heads = 3;
  Rng rng(3);
  SheafAttention<double> sheaf(config, rng);
  MultiHeadAttention<double> dot(dot_config, rng);
  const auto use = [&](RestrictionMap<double>& map, const Linear<double>& linear) {
    map = RestrictionMap<double>::dense(ConstMatrixView<double>(linear.weight.data(), linear.out(), linear.in()));
    map.bias = linear.bias;
  };
  // k is x itself, each head of it on the unit sphere.
  dot.k_proj.weight.setZero();
  for (Index i = 0; i < 24; ++i) dot.k_proj.weight(i, i) = 1;
  use(sheaf.rho_query, dot.q_proj), use(sheaf.rho_key, dot.k_proj), use(sheaf.rho_value, dot.v_proj);
  sheaf.out_proj = dot.out_proj;
  auto x = random_hidden<double>(2, 33, 24, 4);
  for (Index head = 0; head < x.size() / 8; ++head) {
    double sum = 0;
    for (Index d = 0; d < 8; ++d) sum += x.data()[head * 8 + d] * x.data()[head * 8 + d];
    for (Index d = 0; d < 8; ++d) x.data()[head * 8 + d] /= std::sqrt(sum);
  }
  CHECK(largest_difference(sheaf(x), dot(x)) <= 1e-13);
  x(0, 5, 0) += 1;  // one key longer than the others, and it no longer is
  CHECK(largest_difference(sheaf(x), dot(x)) > 1e-3);
}

TEST_CASE("sheaf attention: gradients", "[sheaf attention]") {
  std::uint64_t seed = 50;
  for (const auto& config : naive::sheaf_configs()) {
    INFO(naive::describe(config) << ", seed " << ++seed);
    const auto report =
        gradient_check(random_sheaf<double>(config, seed), random_hidden<double>(2, 11, config.d_model, seed));
    INFO(report.worst);
    CHECK(report.error < 1e-6);
  }
}

TEST_CASE("sheaf attention accumulates parameter gradients and overwrites the input's", "[sheaf attention]") {
  const auto config = naive::sheaf_configs()[2];
  const auto layer = random_sheaf<double>(config, 7);
  const auto x = random_hidden<double>(2, 9, config.d_model, 8), dy = random_hidden<double>(2, 9, config.d_model, 9);
  Tensor<double, 3> y, once, twice = random_hidden<double>(2, 9, config.d_model, 10);
  SheafAttention<double>::Cache cache;
  layer.forward(x, y, cache);
  auto grad = zeros_like(layer), sum = zeros_like(layer);
  layer.backward(dy, cache, once, grad);
  layer.backward(dy, cache, twice, sum);
  layer.backward(dy, cache, twice, sum);
  CHECK(largest_difference(once, twice) == 0);
  const auto single = parameters_of(grad), doubled = parameters_of(sum);
  for (std::size_t p = 0; p < single.size(); ++p)
    for (Index i = 0; i < single[p].size; ++i) CHECK(doubled[p].data[i] == Approx(2 * single[p].data[i]).margin(1e-12));
}

TEST_CASE("sheaf attention has the same bits for 1, 2 and 5 threads, and sees no later token", "[sheaf attention]") {
  auto config = naive::sheaf_configs()[2];
  config.d_model = 40;
  const auto layer = random_sheaf<float>(config, 3);
  const auto x = random_hidden<float>(3, 150, 40, 4), dy = random_hidden<float>(3, 150, 40, 5);
  std::vector<float> first;
  Tensor<float, 3> y, dx;
  for (const int threads : {1, 2, 5}) {
    set_num_threads(threads);
    SheafAttention<float>::Cache cache;
    auto grad = zeros_like(layer);
    layer.forward(x, y, cache);
    layer.backward(dy, cache, dx, grad);
    std::vector<float> all(y.data(), y.data() + y.size());
    all.insert(all.end(), dx.data(), dx.data() + dx.size());
    for (const auto& p : parameters_of(grad)) all.insert(all.end(), p.data, p.data + p.size);
    if (first.empty()) first = all;
    INFO("threads " << threads);
    CHECK(all == first);
  }
  set_num_threads(1);

  auto changed = x;
  for (Index d = 0; d < 40; ++d) changed(1, 77, d) += 100;
  const Tensor<float, 3> after = layer(changed);
  bool same = true, later = false;
  for (Index b = 0; b < 3; ++b)
    for (Index t = 0; t < 150; ++t)
      for (Index d = 0; d < 40; ++d)
        (b == 1 && t >= 77 ? later : same) =
            b == 1 && t >= 77 ? later || after(b, t, d) != y(b, t, d) : same && after(b, t, d) == y(b, t, d);
  CHECK(same);
  CHECK(later);
}

TEST_CASE("maps drawn apart look around; tied maps make every token attend to itself", "[sheaf attention]") {
  SheafAttentionConfig config;
  config.d_model = 64, config.n_heads = 1, config.causal = false;
  Rng rng(8);
  SheafAttention<double> layer(config, rng);
  layer.rho_value = RestrictionMap<double>::identity(64);  // so that y shows whom a token attends to
  layer.out_proj.weight.setZero();
  for (Index i = 0; i < 64; ++i) layer.out_proj.weight(i, i) = 1;
  const auto x = random_hidden<double>(1, 50, 64, 9);
  const auto distance_to_self = [&] {
    const Tensor<double, 3> y = layer(x);
    double distance = 0, size = 0;
    for (Index i = 0; i < x.size(); ++i) {
      distance += (y.data()[i] - x.data()[i]) * (y.data()[i] - x.data()[i]);
      size += x.data()[i] * x.data()[i];
    }
    return distance / size;
  };
  CHECK(distance_to_self() > 0.7);
  layer.rho_key = layer.rho_query;
  CHECK(distance_to_self() < 0.05);
}

TEST_CASE("beta is a parameter if it is learned, a buffer if not, and starts where the config says",
          "[sheaf attention]") {
  SheafAttentionConfig config;
  config.d_model = 32, config.n_heads = 2;
  Rng rng(1);
  const auto beta_of = [](const SheafAttention<double>& layer) { return std::log1p(std::exp(layer.beta(1))); };
  const SheafAttention<double> learned(config, rng);
  CHECK(beta_of(learned) == Approx(0.125));  // 1/(2√16)
  config.learn_beta = false, config.beta = 16;
  const SheafAttention<double> fixed(config, rng);
  CHECK(beta_of(fixed) == Approx(16));
  config.beta = 1000;  // beyond what expm1 can hold
  CHECK(SheafAttention<double>(config, rng).beta(0) == Approx(1000));
  CHECK(count_parameters(learned) == count_parameters(fixed) + 2);
  CHECK(buffers_of(learned).empty());
  REQUIRE(buffers_of(fixed).size() == 1);
  CHECK(buffers_of(fixed)[0].name == "beta");
}

TEST_CASE("a cache turns by the positions of whoever uses it", "[sheaf attention]") {
  SheafAttentionConfig config;
  config.d_model = 24, config.n_heads = 2, config.rotary = Rotary::half_split;
  const auto x = random_hidden<double>(1, 20, 24, 1);
  SheafAttention<double>::Cache cache;
  Tensor<double, 3> y;
  for (const double base : {10000.0, 100.0})
    for (const Index head_dim : {12, 8}) {
      config.rope_base = base, config.head_dim = head_dim;
      const auto layer = naive::random_sheaf<double>(config, 2);
      layer.forward(x, y, cache);
      INFO("base " << base << ", head_dim " << head_dim);
      CHECK(largest_difference(y, layer(x)) == 0);
    }
}

TEST_CASE("sheaf attention refuses what it cannot mean", "[sheaf attention]") {
  Rng rng(1);
  using Config = SheafAttentionConfig;
  const auto make = [&](auto&& change) {
    Config config;
    config.d_model = 12, config.n_heads = 3;
    change(config);
    return SheafAttention<float>(config, rng);
  };
  CHECK_THROWS_WITH(make([](Config& c) { c.n_heads = 0; }),
                    "SheafAttentionConfig: n_heads: expected at least 1, got 0");
  CHECK_THROWS_AS(make([](Config& c) { c.n_heads = 5; }), Error);
  CHECK_THROWS_AS(make([](Config& c) { c.n_kv_heads = 2; }), Error);
  CHECK_THROWS_AS(make([](Config& c) { c.causal = false, c.window = 3; }), Error);
  CHECK_THROWS_AS(make([](Config& c) { c.beta = -1; }), Error);
  CHECK_THROWS_AS(make([](Config& c) { c.beta = NAN; }), Error);
  CHECK_THROWS_AS(make([](Config& c) { c.map = RestrictionMapKind::low_rank; }), Error);
  CHECK_THROWS_AS(make([](Config& c) { c.map = RestrictionMapKind::csr; }), Error);
  CHECK_THROWS_AS(make([](Config& c) { c.map = RestrictionMapKind::diagonal, c.n_kv_heads = 1; }), Error);

  CHECK_THROWS_WITH(make([](Config& c) { c.head_dim = 257; }), ContainsText("head_dim: expected at most 256, got 257"));

  const auto layer = make([](Config&) {});
  Tensor<float, 3> y;
  SheafAttention<float>::Cache cache;
  CHECK_THROWS_WITH(layer.forward(random_hidden<float>(2, 3, 13, 1), y, cache),
                    "SheafAttention::forward: x: expected [-1, -1, 12], got [2, 3, 13]");
  const Tensor<float, 3> nothing(2, 0, 12);
  CHECK_THROWS_WITH(layer.forward(nothing, y, cache), ContainsText("x: expected at least one token, got 0"));
  CHECK_THROWS_WITH(layer.forward_weighted(nothing, zeros<float, 3>({1, 0, 0}), y, cache), ContainsText("one token"));
  layer.forward(random_hidden<float>(2, 3, 12, 1), y, cache);
  auto grad = zeros_like(layer);
  CHECK_THROWS_AS(layer.backward(random_hidden<float>(2, 4, 12, 1), cache, y, grad), Error);
  const auto bidirectional = make([](Config& c) { c.causal = false; });
  SheafAttention<float>::State state;
  CHECK_THROWS_AS(bidirectional.step(random_hidden<float>(1, 1, 12, 1), y, state), Error);
}
