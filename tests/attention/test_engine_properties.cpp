// What holds for every shape, beside the numbers: thread counts, ragged views, caches, subsets of
// queries, causality to the bit, rows that see nothing, logits at the limits, masks of the user's own.
#include "attention/naive_attention.hpp"
#include "rbar/core/parallel.hpp"
#include "support/catch.hpp"

using namespace rbar;
using naive::Problem;
using naive::Sizes;

namespace {

constexpr DotProductScore score{0.3};

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// Causal over a list of key blocks a query block: a block-sparse mask made outside the library.
struct BlockListMask {
  Index block;
  std::vector<std::vector<Index>> blocks;  // [query block] -> key blocks, ascending

  KeyRange keys(const SequencePair& pair, Index, Index query) const { return {0, std::min(pair.keys, query + 1)}; }
  Index query_block() const { return block; }
  template <class Visit>
  void visit_blocks(const SequencePair&, Index, Index query_begin, Index, Visit&& visit) const {
    for (const Index b : blocks[at(query_begin / block)]) visit(b * block, (b + 1) * block);
  }
};

// Any set of pairs, another for every head.
struct PairMask {
  static constexpr bool per_head = true;
  static bool sees(Index h, Index i, Index j) { return (i * 7 + j * 3 + h) % 5 < 2; }
  KeyRange keys(const SequencePair& pair, Index, Index) const { return {0, pair.keys}; }
  bool visible(const SequencePair&, Index head, Index query, Index key) const { return sees(head, query, key); }
};

template <class Mask>
void compare(const Sizes& s, const Mask& mask, const naive::Visible& visible) {
  Problem<double> p(s), expected(s);
  p.attend(score, mask);
  naive::attend(expected, naive::scaled(score.scale), visible);
  CHECK(naive::difference(p.output, expected.output) <= 1e-13);
  CHECK(naive::difference(p.lse, expected.lse) <= 1e-13);
  // dV is linear in P, so Σ dV∘V = Σ dO∘O: a check of the backward pass's own idea of the mask.
  p.backward(score, mask);
  double left = 0, right = 0;
  for (std::size_t i = 0; i < p.value.size(); ++i) left += p.dvalue[i] * p.value[i];
  for (std::size_t i = 0; i < p.output.size(); ++i) right += p.doutput[i] * p.output[i];
  CHECK(left == Approx(right).epsilon(1e-10));
}

}  // namespace

TEST_CASE("a block-sparse mask needs no change of the engine", "[engine][masks]") {
  const Index block = GENERATE(8, 24, 100);
  const BlockListMask mask{
      block,
      {{0}, {1}, {0, 2}, {}, {0, 1, 4}, {2, 3, 5}, {6}, {0, 7}, {8}, {1, 9}, {10}, {3, 11}, {12}, {13}, {}, {0, 15}}};
  const Index tokens = std::min<Index>(16 * block, 121);
  compare({2, tokens, tokens, 4, 2, 8, 8}, mask, [&](Index, Index, Index i, Index j) {
    const auto& list = mask.blocks[at(i / block)];
    return j <= i && std::find(list.begin(), list.end(), j / block) != list.end();
  });
}

TEST_CASE("a mask of single pairs, different for every head", "[engine][masks]") {
  compare({2, 45, 70, 4, 2, 8, 8}, PairMask{},
          [](Index, Index h, Index i, Index j) { return PairMask::sees(h, i, j); });
}

TEST_CASE("positions let subsets of the queries and of the keys attend", "[engine][masks]") {
  const std::vector<Index> query_rows = {0, 3, 4, 9, 30, 31, 55, 69, /**/ 1, 2, 40}, offsets = {0, 8, 11};
  const Sizes s{2, 70, 70, 4, 2, 8, 8};
  Problem<double> full(s);
  const bool routed_keys = GENERATE(false, true);
  const Index window = GENERATE(0, 20);
  std::vector<double> query, key, value, output(11 * 4 * 8), lse(11 * 4);
  for (Index b = 0; b < 2; ++b)
    for (Index r = offsets[at(b)]; r < offsets[at(b) + 1]; ++r) {
      const auto append = [&](auto& to, const auto& from, Index width) {
        const auto first = from.begin() + (b * 70 + query_rows[at(r)]) * width;
        to.insert(to.end(), first, first + width);
      };
      append(query, full.query, 4 * 8);
      append(key, full.key, 2 * 8);
      append(value, full.value, 2 * 8);
    }
  const auto ragged = [&](auto& v, Index heads) { return ragged_heads_view(v.data(), 2, offsets.data(), heads, 8); };
  const PositionMask mask{query_rows.data(), routed_keys ? query_rows.data() : nullptr, window};
  if (routed_keys)
    attend<double>(ragged(query, 4), ragged(key, 2), ragged(value, 2), score, mask, ragged(output, 4), lse.data());
  else
    attend<double>(ragged(query, 4), full.key_like(full.key), full.value_like(full.value), score, mask,
                   ragged(output, 4), lse.data());
  naive::attend(full, naive::scaled(score.scale), [&](Index b, Index, Index i, Index j) {
    const auto first = query_rows.begin() + offsets[at(b)], last = query_rows.begin() + offsets[at(b) + 1];
    return j <= i && (window == 0 || j > i - window) && (!routed_keys || std::find(first, last, j) != last);
  });
  for (Index b = 0; b < 2; ++b)
    for (Index r = offsets[at(b)]; r < offsets[at(b) + 1]; ++r)
      for (Index f = 0; f < 4 * 8; ++f)
        CHECK(output[at(r * 32 + f)] == Approx(full.output[at((b * 70 + query_rows[at(r)]) * 32 + f)]).epsilon(1e-12));
}

TEST_CASE("ragged sequences equal separate calls to the bit", "[engine]") {
  const std::vector<Index> offsets = {0, 17, 17, 18, 100};
  Rng rng(5);
  std::vector<float> x(100 * 3 * 2 * 12), packed_output(100 * 24), alone(100 * 24), lse(200), lse_alone(200);
  for (float& v : x) v = static_cast<float>(rng.normal());
  // Query, key and value side by side in one row, as a fused projection writes them.
  const auto part = [&](Index i, Index b) {
    if (b < 0) return ragged_heads_view(x.data() + i * 24, 4, offsets.data(), 2, 12, 72);
    return heads_view(x.data() + offsets[at(b)] * 72 + i * 24, 1, offsets[at(b) + 1] - offsets[at(b)], 2, 12, 72);
  };
  attend<float>(part(0, -1), part(1, -1), part(2, -1), score, CausalMask{},
                ragged_heads_view(packed_output.data(), 4, offsets.data(), 2, 12), lse.data());
  for (Index b = 0; b < 4; ++b)
    attend<float>(part(0, b), part(1, b), part(2, b), score, CausalMask{},
                  heads_view(alone.data() + offsets[at(b)] * 24, 1, offsets[at(b) + 1] - offsets[at(b)], 2, 12),
                  lse_alone.data() + offsets[at(b)] * 2);
  CHECK(packed_output == alone);
  CHECK(lse == lse_alone);
}

TEST_CASE("decoding with a cache equals the full pass", "[engine]") {
  const Index chunk = GENERATE(1, 2, 7);
  const Sizes s{2, 90, 90, 4, 2, 20, 12};
  Problem<double> full(s), cached(s);
  full.attend(score, CausalMask{});
  for (Index t = 0; t < s.queries; t += chunk) {
    const Index count = std::min(chunk, s.queries - t);
    // The cache's memory holds all 90 tokens; the first t + count of each sequence are filled.
    auto query = cached.query_like(cached.query), output = cached.output_like(cached.output);
    auto key = cached.key_like(cached.key), value = cached.value_like(cached.value);
    for (auto* view : {&query, &output, &key, &value}) view->sequence_stride = s.queries * view->token_stride;
    query.data += t * query.token_stride, output.data += t * output.token_stride;
    query.tokens = output.tokens = count;
    key.tokens = value.tokens = t + count;
    attend<double>(query, key, value, score, CausalMask{t}, output);
  }
  CHECK(naive::difference(cached.output, full.output) <= 1e-13);
}

TEST_CASE("the same bits for every number of threads", "[engine]") {
  const Sizes s{2, 150, 170, 6, 3, 24, 24};
  const auto run = [&](int threads) {
    set_num_threads(threads);
    Problem<float> p(s);
    p.attend(score, CausalMask{20});
    p.backward(score, CausalMask{20});
    set_num_threads(1);
    return p;
  };
  const auto one = run(1);
  for (const int threads : {2, 3}) {
    const auto many = run(threads);
    CHECK(one.output == many.output);
    CHECK(one.lse == many.lse);
    CHECK(one.dquery == many.dquery);
    CHECK(one.dkey == many.dkey);
    CHECK(one.dvalue == many.dvalue);
  }
}

TEST_CASE("a later key does not touch a bit of an earlier row", "[engine]") {
  const Sizes s{1, 100, 100, 2, 2, 16, 16};
  Problem<float> p(s), changed(s);
  const Index token = GENERATE(1, 15, 16, 50, 64, 99);
  for (Index i = token * 32; i < token * 32 + 32; ++i) changed.key[at(i)] = 300, changed.value[at(i)] = -1e30f;
  p.attend(score, CausalMask{});
  changed.attend(score, CausalMask{});
  CHECK(std::equal(p.output.begin(), p.output.begin() + token * 32, changed.output.begin()));
  CHECK(!std::equal(p.output.begin() + token * 32, p.output.end(), changed.output.begin() + token * 32));
}

TEMPLATE_TEST_CASE("rows without a visible key are zero, with zero gradients", "[engine]", float, double) {
  const Index queries = GENERATE(3, 60);
  const Sizes s{1, queries, 40, 2, 1, 8, 8};
  Problem<TestType> p(s);
  const CausalMask mask{-2};  // the first two queries see nothing
  p.attend(score, mask);
  p.backward(score, mask);
  for (Index i = 0; i < 2 * s.heads; ++i) CHECK(p.lse[at(i)] == -std::numeric_limits<TestType>::infinity());
  for (Index i = 0; i < 2 * s.heads * 8; ++i) {
    CHECK(p.output[at(i)] == 0);
    CHECK(p.dquery[at(i)] == 0);
  }
  Problem<double> expected(s);
  naive::attend(expected, naive::scaled(score.scale), [](Index, Index, Index i, Index j) { return j <= i - 2; });
  CHECK(naive::difference(p.output, expected.output) <= 3e-6);
  for (const auto* values : {&p.dquery, &p.dkey, &p.dvalue})
    for (const TestType v : *values) CHECK(std::isfinite(v));
}

namespace {

// ±1e4 by turns, and −∞ for every key divisible by three; queries divisible by 20 see −∞ alone.
struct ExtremeScore {
  template <class T>
  static T logit_of(const QueryIndex& query, const KeyIndex& key) {
    if (key.key % 3 == 0 || query.query % 20 == 0) return -std::numeric_limits<T>::infinity();
    return (query.query + key.key) % 2 == 0 ? T(1e4) : T(-1e4);
  }
  template <class B>
  B logit(const B& dot, const auto&, const auto&, const PairLanes& pairs) const {
    using T = typename B::value_type;
    return dot + pairs.gather<T>([](const auto& query, const auto& key) { return logit_of<T>(query, key); });
  }
  template <class B>
  B vjp(const B& dlogit, const B&, const auto&, const auto&, const PairLanes&, auto&, auto&, auto&) const {
    return dlogit;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("extreme logits give numbers", "[engine]", float, double) {
  const Sizes s{1, GENERATE(2, 50), 90, 2, 1, 8, 8};
  Problem<TestType> p(s);
  Problem<double> expected(p);
  p.attend(ExtremeScore{}, FullMask{});
  p.backward(ExtremeScore{}, FullMask{});
  naive::attend(
      expected,
      [](Index b, Index h, Index i, Index j, double dot) {
        return dot + ExtremeScore::logit_of<double>({b, h, i, i}, {b, h, j, j});
      },
      naive::everything);
  // A float logit near 1e4 is a multiple of 2^-10.
  const double tolerance = std::is_same_v<TestType, float> ? 2e-3 : 1e-11;
  CHECK(naive::difference(p.output, expected.output) <= tolerance);
  CHECK(naive::difference(p.lse, expected.lse) <= tolerance);
  for (const auto* values : {&p.dquery, &p.dkey, &p.dvalue})
    for (const TestType v : *values) CHECK(std::isfinite(v));
}

TEST_CASE("empty problems and wrong shapes", "[engine]") {
  Problem<float> none({2, 0, 5, 2, 1, 4, 4});
  none.attend(score, FullMask{});
  none.backward(score, FullMask{});
  for (const float v : none.dkey) CHECK(v == 0);
  Problem<float> keyless({2, 5, 0, 2, 1, 4, 4});
  keyless.attend(score, CausalMask{});
  keyless.backward(score, CausalMask{});
  for (const float v : keyless.output) CHECK(v == 0);
  for (const float v : keyless.dquery) CHECK(v == 0);

  Problem<float> p({1, 5, 5, 3, 2, 4, 4});
  CHECK_THROWS_AS(p.attend(score, FullMask{}), Error);  // 3 heads on 2
  Problem<float> wide({1, 2, 2, 1, 1, 257, 4});
  CHECK_THROWS_AS(wide.attend(score, FullMask{}), Error);
}
