// An attention of your own: a score functor with its derivative, handed to the engine.
//
// This one forgets: logit_ij = q_i·k_j − slope_h·(i − j), with one slope a head. ALiBi (Press, Smith and
// Lewis, "Train short, test long", 2022) fixes the slopes; here they are learnt, from sequences x and their
// exponential averages
//   y_t = Σ_{j≤t} a^{t−j} x_j / Σ_{j≤t} a^{t−j},    a = 1/2 for the first head and 9/10 for the second,
// which this attention computes exactly when slope_h = −log a and q·k = 0.
#include "rbar/attention/engine.hpp"
#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"

#include <cmath>
#include <cstdio>

using rbar::Index;

struct ForgettingScore {
  static constexpr int query_values = 1;  // what a (head, query) brings along: the slope of its head
  const float* slope;                     // [heads]

  void load_query(const rbar::QueryIndex& at, float* values) const { values[0] = slope[at.head]; }

  template <class B>  // B: a SIMD register of queries, all with the same key
  static B distance(const rbar::PairLanes& pairs) {
    return pairs.gather<float>([](const auto& query, const auto& key) { return float(query.query - key.key); });
  }
  template <class B>
  B logit(const B& dot, const auto& query, const auto& /*key*/, const rbar::PairLanes& pairs) const {
    return dot - query[0] * distance<B>(pairs);
  }
  template <class B>
  B vjp(const B& dlogit, const B& /*dot*/, const auto& /*query*/, const auto& /*key*/, const rbar::PairLanes& pairs,
        auto& dquery, auto& /*dkey*/, auto& /*gradient*/) const {
    dquery[0] = dquery[0] - dlogit * distance<B>(pairs);
    return dlogit;  // ∂logit/∂dot = 1
  }
};

struct SlopeGradient {
  float* slope;  // [heads]; one thread here: with more, one sum a (batch, head), added up afterwards
  void add_query(const rbar::QueryIndex& at, const float* values) { slope[at.head] += values[0]; }
  void add_key(const rbar::KeyIndex&, const float*) {}
};

int main() {
  constexpr Index batch = 4, tokens = 64, heads = 2, head_dim = 8, features = heads * head_dim;
  const float decay[heads] = {0.5f, 0.9f};

  // The data: noise x, and its average with each head's own decay as the target.
  auto x = rbar::zeros<float, 3>({batch, tokens, features});
  auto target = x;
  rbar::Rng rng(1);
  for (float& value : rbar::elements(x)) value = static_cast<float>(rng.normal());
  for (Index b = 0; b < batch; ++b)
    for (Index d = 0; d < features; ++d) {
      const float a = decay[d / head_dim];
      float sum = 0, weight = 0;
      for (Index t = 0; t < tokens; ++t) {
        sum = a * sum + x(b, t, d);
        weight = a * weight + 1;
        target(b, t, d) = sum / weight;
      }
    }

  // Queries and keys are zero, values are x: only the slopes can learn.
  const auto zero = rbar::zeros<float, 3>({batch, tokens, features});
  auto y = zero, dy = zero, dquery = zero, dkey = zero, dvalue = zero;
  auto log_sum_exp = rbar::zeros<float, 2>({batch * tokens, heads});
  float slope[heads] = {0, 0};
  const auto in_heads = [](auto& tensor) { return rbar::heads_view(tensor, heads); };
  double first_loss = 0, loss = 0;
  for (int step = 0; step <= 50; ++step) {
    const ForgettingScore score{slope};
    const rbar::CausalMask mask;
    rbar::attend(in_heads(zero), in_heads(zero), in_heads(x), score, mask, in_heads(y), log_sum_exp.data());

    loss = 0;
    for (Index i = 0; i < y.size(); ++i) {
      const float error = y.data()[i] - target.data()[i];
      loss += error * error / static_cast<double>(y.size());
      dy.data()[i] = 2 * error / static_cast<float>(y.size());
    }
    if (step == 0) first_loss = loss;
    if (step % 10 == 0)
      std::printf("step %3d  loss %.9f  slopes %.3f %.3f\n", step, loss, double(slope[0]), double(slope[1]));

    float dslope[heads] = {0, 0};
    rbar::attend_backward(in_heads(zero), in_heads(zero), in_heads(x), in_heads(y), in_heads(dy), log_sum_exp.data(),
                          score, mask, in_heads(dquery), in_heads(dkey), in_heads(dvalue), SlopeGradient{dslope});
    for (Index h = 0; h < heads; ++h) slope[h] -= 0.5f * dslope[h];
  }
  std::printf("wanted: slopes %.3f %.3f\n", -std::log(0.5), -std::log(0.9));
  return loss < 1e-3 * first_loss ? 0 : 1;
}
