// Dense sheaf attention. `time_ratio` is its time over that of dot-product attention on the same numbers, the two
// measured in turns (1: the energy is free; the norms of the keys are counted with it, and the gradients of β and of
// the norms), for the engine alone and for whole layers. `speedup` is over the eager formulation: the matrix of all
// energies, its softmax by rows, and the product with the values, made of Eigen's products and loops over rows.
#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/core/random.hpp"
#include "rbar/sheaf/sheaf_attention.hpp"
#include "support.hpp"

#include <cmath>

namespace {

using namespace rbar;

constexpr Index heads = 8, dim = 64;

const Tensor<float, 3>& noise_of(Index tokens) {
  static Tensor<float, 3> noise;
  ensure_shape(noise, {1, tokens, heads * dim});
  Rng rng(1);
  normal(noise, 1.0, rng);
  return noise;
}

struct Setting {
  Index tokens;
  bool causal;
  Tensor<float, 3> query, key, value, output, doutput, dquery, dkey, dvalue;
  Tensor<float, 2> lse, norms, dnorms;
  Tensor<double, 1> dlog_beta;
  std::vector<float> beta;

  Setting(Index tokens_, bool causal_)
      : tokens(tokens_),
        causal(causal_),
        lse(tokens, heads),
        norms(tokens, heads),
        dnorms(tokens, heads),
        dlog_beta(heads) {
    Rng rng(1);
    for (auto* tensor : {&query, &key, &value, &output, &doutput, &dquery, &dkey, &dvalue}) {
      tensor->resize(1, tokens, heads * dim);
      normal(*tensor, 1.0, rng);
    }
    beta.assign(static_cast<std::size_t>(heads), 0.5f / std::sqrt(static_cast<float>(dim)));
  }
  double flops() const {
    const double t = static_cast<double>(tokens);
    return 4.0 * static_cast<double>(heads * dim) * (causal ? t * (t + 1) / 2 : t * t);
  }
  AttentionMask mask() const { return {causal, 0, 0, nullptr, nullptr}; }
  auto view(Tensor<float, 3>& tensor) { return heads_view(tensor, heads); }

  void dot() {
    attend<float>(view(query), view(key), view(value), DotProductScore{1 / std::sqrt(double(dim))}, mask(),
                  view(output), lse.data());
  }
  void dot_backward() {
    attend_backward<float>(view(query), view(key), view(value), view(output), view(doutput), lse.data(),
                           DotProductScore{1 / std::sqrt(double(dim))}, mask(), view(dquery), view(dkey), view(dvalue));
  }
  SheafScore<float> score() const { return {beta.data(), norms.data(), heads}; }
  void sheaf() {
    square_norms<float>(view(key), norms.data());
    attend<float>(view(query), view(key), view(value), score(), mask(), view(output), lse.data());
  }
  void sheaf_backward() {
    dlog_beta.setZero();
    dnorms.setZero();
    attend_backward<float>(view(query), view(key), view(value), view(output), view(doutput), lse.data(), score(),
                           mask(), view(dquery), view(dkey), view(dvalue),
                           SheafScoreGradient<float>{dlog_beta.data(), dnorms.data(), heads, heads});
    square_norms_backward<float>(view(key), dnorms.data(), view(dkey));
  }

  // E = ‖q‖² + ‖k‖² − 2 q·k for all pairs of a head, then softmax(−βE)·V.
  void eager() {
    using Strided = Eigen::Map<const Matrix<float>, 0, Eigen::OuterStride<>>;
    static Matrix<float> energy;
    const Eigen::OuterStride<> stride(heads * dim);
    for (Index h = 0; h < heads; ++h) {
      const Strided q(query.data() + h * dim, tokens, dim, stride), k(key.data() + h * dim, tokens, dim, stride);
      const Strided v(value.data() + h * dim, tokens, dim, stride);
      energy.noalias() = q * k.transpose();
      const Eigen::RowVectorXf key_norms = k.rowwise().squaredNorm().transpose();
      for (Index i = 0; i < tokens; ++i) {
        const Index seen = causal ? i + 1 : tokens;
        auto row = energy.row(i).head(seen);
        row = -beta[0] * (key_norms.head(seen) - 2 * row).array() - beta[0] * q.row(i).squaredNorm();
        row = (row.array() - row.maxCoeff()).exp();
        row /= row.sum();
        energy.row(i).tail(tokens - seen).setZero();
      }
      Eigen::Map<Matrix<float>, 0, Eigen::OuterStride<>>(output.data() + h * dim, tokens, dim, stride).noalias() =
          energy * v;
    }
  }
};

void engine_forward(benchmark::State& state) {
  Setting x(state.range(0), state.range(1) != 0);
  state.counters["time_ratio"] = bench::paired_ratio([&] { x.sheaf(); }, [&] { x.dot(); });
  bench::measure(
      state, {.flops = x.flops()}, [&] { x.sheaf(); }, [&] { x.eager(); });
}
void engine_backward(benchmark::State& state) {
  Setting x(state.range(0), state.range(1) != 0);
  x.sheaf();
  Setting y(state.range(0), state.range(1) != 0);
  y.dot();
  state.counters["time_ratio"] = bench::paired_ratio([&] { x.sheaf_backward(); }, [&] { y.dot_backward(); });
  bench::measure(state, {.flops = 2.5 * x.flops()}, [&] { x.sheaf_backward(); });
}

// What weights of single edges cost, over the score without them.
void edge_weights(benchmark::State& state) {
  Setting x(state.range(0), state.range(1) != 0);
  auto weight = zeros<float, 2>({x.tokens, x.tokens});
  weight.setConstant(1);
  Tensor<float, 2> query_norms(x.tokens, heads);
  const auto weighted = [&] {
    square_norms<float>(x.view(x.query), query_norms.data());
    square_norms<float>(x.view(x.key), x.norms.data());
    attend<float>(x.view(x.query), x.view(x.key), x.view(x.value),
                  SheafEdgeScore<float>{
                      x.beta.data(), query_norms.data(), x.norms.data(), heads, heads, {weight.data(), x.tokens, 0}},
                  x.mask(), x.view(x.output), x.lse.data());
  };
  state.counters["time_ratio"] = bench::paired_ratio(weighted, [&] { x.sheaf(); });
  bench::measure(state, {.flops = x.flops()}, weighted);
}

// Whole layers, d_model 512: four projections more on either side.
void layer(benchmark::State& state, bool backward) {
  const Index tokens = state.range(0);
  const bool causal = state.range(1) != 0;
  const Tensor<float, 3>& x = noise_of(tokens);
  Rng rng(2);
  SheafAttentionConfig config;
  config.causal = causal;
  MultiHeadAttentionConfig dot_config;
  dot_config.causal = causal;
  const SheafAttention<float> sheaf(config, rng);
  const MultiHeadAttention<float> dot(dot_config, rng);
  SheafAttention<float>::Cache sheaf_cache;
  MultiHeadAttention<float>::Cache dot_cache;
  auto sheaf_grad = zeros_like(sheaf);
  auto dot_grad = zeros_like(dot);
  Tensor<float, 3> y, dx;
  sheaf.forward(x, y, sheaf_cache);
  dot.forward(x, y, dot_cache);
  const auto ours = [&] {
    backward ? sheaf.backward(x, sheaf_cache, dx, sheaf_grad) : sheaf.forward(x, y, sheaf_cache);
  };
  const auto theirs = [&] { backward ? dot.backward(x, dot_cache, dx, dot_grad) : dot.forward(x, y, dot_cache); };
  state.counters["time_ratio"] = bench::paired_ratio(ours, theirs);
  const double t = static_cast<double>(tokens), d = static_cast<double>(heads * dim);
  const double attention = 4 * d * (causal ? t * (t + 1) / 2 : t * t), projections = 8 * t * d * d;
  bench::measure(state, {.flops = backward ? 2.5 * attention + 2 * projections : attention + projections}, ours);
}
void layer_forward(benchmark::State& state) { layer(state, false); }
void layer_backward(benchmark::State& state) { layer(state, true); }

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "causal"})->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(5);
  for (const Index tokens : {1024, 4096})
    for (const Index causal : {0, 1}) b->Args({tokens, causal});
}

BENCHMARK(engine_forward)->Apply(shapes);
BENCHMARK(engine_backward)->Apply(shapes);
BENCHMARK(edge_weights)->Apply(shapes);
BENCHMARK(layer_forward)->Apply(shapes);
BENCHMARK(layer_backward)->Apply(shapes);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
