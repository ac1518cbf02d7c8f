// Sheaf attention whose rows skip blocks of keys: the layer keeps the plan's promises in each of its ways.
#include "rbar/audit/gradient_check.hpp"
#include "sheaf/naive_sheaf.hpp"
#include "support/differences.hpp"

using namespace rbar;
using naive::largest_difference;
using naive::random_hidden;

namespace {

SheafAttentionConfig sparse_config(double epsilon, bool causal = true) {
  SheafAttentionConfig config;
  config.d_model = 16, config.n_heads = 4, config.n_kv_heads = 2, config.causal = causal;
  config.beta = 1;
  config.sparsity.enabled = true;
  config.sparsity.epsilon = epsilon, config.sparsity.block = 8, config.sparsity.chunk = 16;
  config.sparsity.clusters = 4;
  return config;
}

// Tokens around a few centres, so that most keys are far from a query.
template <class T>
Tensor<T, 3> clustered(Index batch, Index tokens, Index dim, std::uint64_t seed) {
  Rng rng(seed);
  Tensor<T, 2> centres(5, dim);
  normal(centres, 2.0, rng);
  auto x = random_hidden<T>(batch, tokens, dim, seed);
  for (Index row = 0; row < batch * tokens; ++row) {
    const auto centre = static_cast<Index>(rng.below(5));
    for (Index d = 0; d < dim; ++d) x.data()[row * dim + d] = T(0.1) * x.data()[row * dim + d] + centres(centre, d);
  }
  return x;
}

// max over rows and heads of ‖o_sparse − o_dense‖ / max‖v‖, before the output projection.
template <class T>
double relative_error(const typename SheafAttention<T>::Cache& sparse, const typename SheafAttention<T>::Cache& dense,
                      Index head_dim) {
  const auto norm = [&](auto&& element) {
    double sum = 0;
    for (Index d = 0; d < head_dim; ++d) sum += element(d) * element(d);
    return std::sqrt(sum);
  };
  double largest_value = 0, error = 0;
  for (Index i = 0; i < dense.value.size(); i += head_dim)
    largest_value = std::max(largest_value, norm([&](Index d) { return double(dense.value.data()[i + d]); }));
  for (Index i = 0; i < dense.attended.size(); i += head_dim)
    error = test::larger(error, norm([&](Index d) {
                           return double(sparse.attended.data()[i + d]) - double(dense.attended.data()[i + d]);
                         }));
  return error / largest_value;
}

}  // namespace

TEST_CASE("a sparse layer stays within epsilon of the dense one, and skips", "[sheaf attention]") {
  for (const bool causal : {true, false})
    for (const double epsilon : {0.0, 1e-3, 0.1}) {
      const auto config = sparse_config(epsilon, causal);
      Rng rng(3);
      const SheafAttention<double> sparse(config, rng);
      auto dense = sparse;
      dense.config.sparsity.enabled = false;
      const auto x = clustered<double>(2, 150, 16, 4);
      Tensor<double, 3> y, expected;
      SheafAttention<double>::Cache sparse_cache, dense_cache;
      sparse.forward(x, y, sparse_cache);
      dense.forward(x, expected, dense_cache);
      INFO("causal " << causal << ", epsilon " << epsilon);
      CHECK(relative_error<double>(sparse_cache, dense_cache, 4) <= epsilon + 1e-13);
      const SparsitySummary summary = sparse_cache.score.plan.summary();
      CHECK(2 * summary.largest_share_bound <= epsilon + 1e-13);
      CHECK((epsilon > 0) == (summary.skipped_blocks > 0));
    }
}

TEST_CASE("a sparse layer: gradients", "[sheaf attention]") {
  for (const bool causal : {true, false}) {
    Rng rng(5);
    const SheafAttention<double> layer(sparse_config(0.02, causal), rng);
    const auto report = gradient_check(layer, clustered<double>(2, 53, 16, 6));
    INFO("causal " << causal << ": " << report.worst);
    CHECK(report.error < 1e-6);
  }
}

TEST_CASE("a sparse layer: routed gradients are those of the full pass where nothing else asks", "[sheaf attention]") {
  Rng rng(9);
  const SheafAttention<double> layer(sparse_config(0.02), rng);
  const Index batch = 2, tokens = 61, dim = 16;
  const auto x = clustered<double>(batch, tokens, dim, 10);
  auto dy = random_hidden<double>(batch, tokens, dim, 11);
  std::vector<Index> chosen, offsets = {0};
  for (Index b = 0; b < batch; ++b) {
    for (Index t = 0; t < tokens; ++t)
      if (t % 3 == b)
        chosen.push_back(b * tokens + t);
      else
        std::fill_n(&dy(b, t, 0), dim, 0.0);
    offsets.push_back(static_cast<Index>(chosen.size()));
  }
  const RoutedRows routed{chosen.data(), offsets.data(), batch};
  Tensor<double, 3> y, dx, routed_dx = zeros<double, 3>({batch, tokens, dim});
  SheafAttention<double>::Cache cache, routed_cache;
  auto grad = zeros_like(layer), routed_grad = grad;
  layer.forward(x, y, cache);
  layer.backward(dy, cache, dx, grad);
  Tensor<double, 2> selected(routed.count(), dim);
  layer.forward_routed(x, routed, KeyValues::all, rows(selected), routed_cache);
  gather_rows<double>(rows(std::as_const(dy)), routed, rows(selected));
  layer.backward_routed(rows(std::as_const(selected)), x, routed, KeyValues::all, routed_cache, routed_dx, routed_grad);
  CHECK(largest_difference(dx, routed_dx) <= 1e-11);
  const auto one = parameters_of(grad), other = parameters_of(routed_grad);
  double error = 0;
  for (std::size_t p = 0; p < one.size(); ++p)
    for (Index i = 0; i < one[p].size; ++i) error = test::larger(error, std::abs(one[p].data[i] - other[p].data[i]));
  CHECK(error <= 1e-10);
}

TEST_CASE("a sparse stream and sparse routed queries have the numbers of the full pass", "[sheaf attention]") {
  Rng rng(7);
  const SheafAttention<float> layer(sparse_config(0.01), rng);
  const Index batch = 2, tokens = 150, dim = 16;
  const auto x = clustered<float>(batch, tokens, dim, 8);
  const Tensor<float, 3> full = layer(x);

  for (const Index chunk : {1, 7}) {
    SheafAttention<float>::State state;
    Tensor<float, 3> y;
    float error = 0;
    for (Index first = 0; first < tokens; first += chunk) {
      const Index count = std::min(chunk, tokens - first);
      Tensor<float, 3> part(batch, count, dim);
      for (Index b = 0; b < batch; ++b) std::copy_n(&x(b, first, 0), count * dim, &part(b, 0, 0));
      layer.step(part, y, state);
      for (Index b = 0; b < batch; ++b)
        for (Index t = 0; t < count; ++t)
          for (Index d = 0; d < dim; ++d) error = test::larger(error, std::abs(y(b, t, d) - full(b, first + t, d)));
    }
    INFO("chunk " << chunk);
    CHECK(error <= 1e-5f);
    CHECK(state.score.plan.summary().skipped_blocks > 0);
  }

  std::vector<Index> chosen, offsets = {0};
  for (Index b = 0; b < batch; ++b) {
    for (Index t = b; t < tokens; t += 3) chosen.push_back(b * tokens + t);
    offsets.push_back(static_cast<Index>(chosen.size()));
  }
  const RoutedRows routed{chosen.data(), offsets.data(), batch};
  Tensor<float, 2> selected(routed.count(), dim);
  SheafAttention<float>::Cache cache;
  layer.forward_routed(x, routed, KeyValues::all, rows(selected), cache);
  float error = 0;
  for (Index s = 0; s < routed.count(); ++s)
    for (Index d = 0; d < dim; ++d)
      error = test::larger(error, std::abs(selected(s, d) - full.data()[routed.rows[s] * dim + d]));
  CHECK(error <= 1e-5f);
  CHECK(cache.score.plan.summary().skipped_blocks > 0);

  auto changed = x;  // a later token moves no bit of an earlier one
  for (Index d = 0; d < dim; ++d) changed(0, 100, d) += 5;
  const Tensor<float, 3> after = layer(changed);
  float leak = 0;
  for (Index i = 0; i < 100 * dim; ++i) leak = test::larger(leak, std::abs(after.data()[i] - full.data()[i]));
  CHECK(leak == 0);
}

TEST_CASE("an override of the sparsity holds forwards and backwards", "[sheaf attention]") {
  Rng rng(12);
  const SheafAttention<double> sparse(sparse_config(0.05), rng);
  auto dense = sparse;
  dense.config.sparsity.enabled = false;
  const auto x = clustered<double>(2, 70, 16, 13), dy = random_hidden<double>(2, 70, 16, 14);
  const auto gradients = [&](const SheafAttention<double>& layer, SheafAttention<double>::Cache& cache) {
    Tensor<double, 3> y, dx;
    auto grad = zeros_like(layer);
    layer.forward(x, y, cache);
    layer.backward(dy, cache, dx, grad);
    std::vector<double> all(dx.data(), dx.data() + dx.size());
    for (const auto& p : parameters_of(grad)) all.insert(all.end(), p.data, p.data + p.size);
    return all;
  };
  SheafAttention<double>::Cache own, other;
  const auto of_sparse = gradients(sparse, own), of_dense = gradients(dense, other);
  CHECK(of_sparse != of_dense);
  CHECK(other.score.plan.summary().visible_blocks == 0);
  other.score.sparsity = sparse.config.sparsity;
  CHECK(gradients(dense, other) == of_sparse);
  CHECK(gradients(dense, other) == of_sparse);  // it stays
  own.score.sparsity = dense.config.sparsity;
  CHECK(gradients(sparse, own) == of_dense);
  CHECK(own.score.plan.summary().visible_blocks == 0);
  own.score.sparsity.reset();
  CHECK(gradients(sparse, own) == of_sparse);
}

TEST_CASE("skipping and a window do not go together", "[sheaf attention]") {
  auto config = sparse_config(0.01);
  config.window = 8;
  Rng rng(1);
  CHECK_THROWS_WITH(SheafAttention<float>(config, rng), ContainsText("window"));
  config = sparse_config(-1);
  CHECK_THROWS_AS(SheafAttention<float>(config, rng), Error);
}
