// Score functors that the library does not have yet, written against the engine as it is: whatever an
// attention needs inside the softmax fits the interface. Each is checked, forward and backward, against
// its definition written pair by pair. Those of sheaf attention, one with a number for every pair, are tested with it.
#include "attention/naive_attention.hpp"
#include "rbar/audit/gradient_check.hpp"
#include "rbar/core/parallel.hpp"
#include "support/catch.hpp"

using namespace rbar;
using naive::Problem;
using naive::Sizes;
using Doubles = std::vector<double>;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// Gradients of a parameter of the heads: one sum a (batch, head), added up at the end.
struct HeadSums {
  Index heads = 0;
  Doubles sums;

  void add(const QueryIndex& query, double value) { sums[at(query.batch * heads + query.head)] += value; }
  Doubles total() const {
    Doubles total(at(heads), 0.0);
    for (std::size_t i = 0; i < sums.size(); ++i) total[i % at(heads)] += sums[i];
    return total;
  }
};

// (a) Phase-modulated: logit = s/√d·(λ_h cos(φ[i,h] − ψ_j) + 1 − λ_h)/τ[i,h]; the cosine is cos φ cos ψ + sin φ sin ψ.
struct PhaseScore {
  static constexpr int query_values = 4, key_values = 2;  // cos φ, sin φ, λ, 1/τ and cos ψ, sin ψ
  const double *phase, *temperature;                      // [row][heads]
  const double* strength;                                 // λ [heads]
  const double* position_phase;                           // ψ [keys]
  Index heads;
  double scale;

  double query_scale(const QueryIndex&) const { return scale; }
  void load_query(const QueryIndex& query, double* values) const {
    const Index i = query.row * heads + query.head;
    values[0] = std::cos(phase[i]), values[1] = std::sin(phase[i]);
    values[2] = strength[query.head], values[3] = 1 / temperature[i];
  }
  void load_key(const KeyIndex& key, double* values) const {
    values[0] = std::cos(position_phase[key.key]), values[1] = std::sin(position_phase[key.key]);
  }
  template <class B>
  B logit(const B& dot, const auto& query, const auto& key, const PairLanes&) const {
    const B cosine = query[0] * key[0] + query[1] * key[1];
    return dot * (query[2] * (cosine - B(1.0)) + B(1.0)) * query[3];
  }
  template <class B>
  B vjp(const B& dlogit, const B& dot, const auto& query, const auto& key, const PairLanes&, auto& dquery, auto& dkey,
        auto&) const {
    const B cosine = query[0] * key[0] + query[1] * key[1];
    const B factor = query[2] * (cosine - B(1.0)) + B(1.0);
    const B dfactor = dlogit * dot * query[3], dcosine = dfactor * query[2];
    for (std::size_t i = 0; i < 2; ++i) dquery[i] += dcosine * key[i], dkey[i] += dcosine * query[i];
    dquery[2] += dfactor * (cosine - B(1.0));
    dquery[3] += dlogit * dot * factor;
    return dlogit * factor * query[3];
  }
};
struct PhaseGradient {
  const PhaseScore& score;
  HeadSums strength;
  Doubles phase, temperature;  // [row][heads]
  Doubles position_phase;      // [row][kv heads]: one sum a (batch, kv head), as the calls may be concurrent
  Index kv_heads;

  void add_query(const QueryIndex& query, const double* values) {
    const Index i = query.row * score.heads + query.head;
    phase[at(i)] = values[1] * std::cos(score.phase[i]) - values[0] * std::sin(score.phase[i]);
    temperature[at(i)] = -values[3] / (score.temperature[i] * score.temperature[i]);
    strength.add(query, values[2]);
  }
  void add_key(const KeyIndex& key, const double* values) {
    const double psi = score.position_phase[key.key];
    position_phase[at(key.row * kv_heads + key.head)] += values[1] * std::cos(psi) - values[0] * std::sin(psi);
  }
};

// (b) A user's own: soft capping, logit = c·tanh(s/c), with a learned cap c.
struct SoftCapScore {
  static constexpr int query_values = 1;
  const double* cap;  // [1]

  void load_query(const QueryIndex&, double* values) const { values[0] = *cap; }
  template <class B>
  B logit(const B& dot, const auto& query, const auto&, const PairLanes&) const {
    return query[0] * xsimd::tanh(dot / query[0]);
  }
  template <class B>
  B vjp(const B& dlogit, const B& dot, const auto& query, const auto&, const PairLanes&, auto& dquery, auto&,
        auto&) const {
    const B t = xsimd::tanh(dot / query[0]);
    const B slope = B(1.0) - t * t;
    dquery[0] += dlogit * (t - dot / query[0] * slope);
    return dlogit * slope;
  }
};
struct SoftCapGradient {
  HeadSums cap;
  void add_query(const QueryIndex& query, const double* values) { cap.add(query, values[0]); }
};

Doubles random(Index size, std::uint64_t seed, double low, double high) {
  Rng rng(seed);
  Doubles values(at(size));
  for (double& value : values) value = rng.uniform(low, high);
  return values;
}

// Forward against the definition, then every gradient against its differences.
template <class Score, class Gradient, class Collect>
void check(Problem<double>& p, const Score& score, Gradient gradient, const naive::Logit& logit, Collect&& collect) {
  const auto causal = [](Index, Index, Index i, Index j) { return j <= i + 3; };
  const CausalMask mask{3};
  Problem<double> expected(p);
  naive::attend(expected, logit, causal);
  p.attend(score, mask);
  CHECK(naive::difference(p.output, expected.output) <= 1e-12);
  CHECK(naive::difference(p.lse, expected.lse) <= 1e-12);
  p.backward(score, mask, gradient);
  std::vector<GradientPair> pairs = {
      {"query", p.query, p.dquery}, {"key", p.key, p.dkey}, {"value", p.value, p.dvalue}};
  collect(gradient, pairs);
  const auto report = gradient_check(pairs, [&] { return naive::loss(p, logit, causal); }, {.samples_per_tensor = 25});
  INFO(report.worst);
  CHECK(report.error <= 1e-6);
}

// Of the last, the backward pass takes the keys in several parts.
const Sizes sizes_of_test[] = {
    {2, 37, 41, 4, 2, 9, 6}, {1, 70, 80, 2, 2, 16, 16}, {2, 2, 30, 3, 1, 8, 8}, {1, 68, 260, 1, 1, 256, 256}};

}  // namespace

TEST_CASE("a phase-modulated score with a temperature for every query", "[engine][scores]") {
  for (const Sizes& s : sizes_of_test) {
    Problem<double> p(s);
    const Index rows = s.batch * s.queries * s.heads;
    Doubles phase = random(rows, 5, -3, 3), temperature = random(rows, 6, 0.5, 2);
    Doubles strength = random(s.heads, 7, 0, 1), position = random(s.keys, 8, -3, 3);
    Doubles dphase, dtemperature, dstrength, dposition(at(s.keys));
    const PhaseScore score{phase.data(),    temperature.data(),
                           strength.data(), position.data(),
                           s.heads,         1 / std::sqrt(static_cast<double>(s.dim))};
    const naive::Logit logit = [&](Index b, Index h, Index i, Index j, double dot) {
      const std::size_t row = at((b * s.queries + i) * s.heads + h);
      const double lambda = strength[at(h)];
      return dot * score.scale * (lambda * std::cos(phase[row] - position[at(j)]) + 1 - lambda) / temperature[row];
    };
    const PhaseGradient gradient{score,
                                 {s.heads, Doubles(at(s.batch * s.heads))},
                                 Doubles(phase.size()),
                                 Doubles(temperature.size()),
                                 Doubles(at(s.batch * s.keys * s.kv_heads)),
                                 s.kv_heads};
    check(p, score, gradient, logit, [&](const PhaseGradient& g, auto& pairs) {
      dphase = g.phase, dtemperature = g.temperature, dstrength = g.strength.total();
      for (std::size_t i = 0; i < g.position_phase.size(); ++i)
        dposition[i / at(s.kv_heads) % at(s.keys)] += g.position_phase[i];
      pairs.push_back({"phase", phase, dphase});
      pairs.push_back({"temperature", temperature, dtemperature});
      pairs.push_back({"strength", strength, dstrength});
      pairs.push_back({"position_phase", position, dposition});
    });
  }
}

TEST_CASE("a user's own score in a few lines", "[engine][scores]") {
  for (const Sizes& s : sizes_of_test) {
    Problem<double> p(s);
    Doubles cap = {1.7}, dcap;
    const naive::Logit logit = [&](Index, Index, Index, Index, double dot) { return cap[0] * std::tanh(dot / cap[0]); };
    check(p, SoftCapScore{cap.data()}, SoftCapGradient{{s.heads, Doubles(at(s.batch * s.heads))}}, logit,
          [&](const SoftCapGradient& g, auto& pairs) {
            dcap = {0.0};
            for (const double value : g.cap.total()) dcap[0] += value;
            pairs.push_back({"cap", cap, dcap});
          });
  }
}
