// The second pass of a shape, a stream, and routed rows in any number allocate nothing on the heap.
#include "sheaf/naive_sheaf.hpp"
#include "support/allocation_count.hpp"

using namespace rbar;

TEST_CASE("sheaf attention allocates in its first pass only", "[sheaf attention][allocations]") {
  if (!test::counts_allocations) return;
  SheafAttentionConfig config;
  config.d_model = 32, config.n_heads = 4, config.n_kv_heads = 2, config.rotary = Rotary::half_split;
  const auto layer = naive::random_sheaf<float>(config, 1);
  const auto x = naive::random_hidden<float>(2, 70, 32, 2), dy = naive::random_hidden<float>(2, 70, 32, 3);
  const auto weight = [] {
    auto ones = zeros<float, 3>({2, 70, 70});
    ones.setConstant(1);
    return ones;
  }();
  const ConstTensorView<float, 3> in = view(x), gradient = view(dy), edges = view(weight);
  Tensor<float, 3> y, dx, dweight;
  auto grad = zeros_like(layer);

  SheafAttention<float>::Cache cache;
  const auto full = [&] {
    layer.forward(in, y, cache);
    layer.backward(gradient, cache, dx, grad);
  };
  full();
  CHECK(test::allocations_in(full) == 0);

  const auto weighted = [&] {
    layer.forward_weighted(in, edges, y, cache);
    layer.backward_weighted(gradient, edges, cache, dx, dweight, grad);
  };
  weighted();
  CHECK(test::allocations_in(weighted) == 0);

  // Other rows each time, more and fewer.
  Tensor<float, 2> selected(140, 32);
  selected.setConstant(0.5f);
  std::vector<Index> chosen, offsets;
  const auto choose = [&](Index every) {
    chosen.clear(), offsets.assign(1, 0);
    for (Index b = 0; b < 2; ++b) {
      for (Index t = 0; t < 70; t += every) chosen.push_back(b * 70 + t);
      offsets.push_back(static_cast<Index>(chosen.size()));
    }
  };
  SheafAttention<float>::Cache routed_cache;
  const auto routed = [&] {
    const RoutedRows rows_of_pass{chosen.data(), offsets.data(), 2};
    const MatrixView<float> out = top_rows(selected, rows_of_pass.count());
    layer.forward_routed(in, rows_of_pass, KeyValues::all, out, routed_cache);
    layer.backward_routed(as_const(out), in, rows_of_pass, KeyValues::all, routed_cache, dx, grad);
  };
  choose(1);
  routed();
  for (const Index every : {3, 2}) {
    choose(every);
    CHECK(test::allocations_in(routed) == 0);
  }

  SheafAttention<float>::State state;
  const Index first[] = {0, 1, 2}, positions[] = {3, 1};
  const auto token = naive::random_hidden<float>(2, 1, 32, 4);
  const ConstTensorView<float, 3> next = view(token);
  const auto step = [&] {
    layer.step(next, y, state);
    if (state.position == 10)
      layer.attend_cached(rows(next), {nullptr, first, 2}, positions, top_rows(selected, 2), state);
  };
  for (int t = 0; t < 33; ++t) step();  // the table of angles doubles, now to 64 positions
  CHECK(test::allocations_in([&] {
          for (int t = 33; t < 64; ++t) step();  // the cache has room for 64
        }) == 0);
}
