// Σ of a list whose elements change one by one, added pairwise in an order that depends on its length alone: after
// any changes it has the bits of a sum from scratch, for log2(length) additions a change.
#pragma once

#include "rbar/core/tensor.hpp"

namespace rbar {

struct SumTree {
  Index leaves = 0;         // a power of two
  Tensor<double, 1> nodes;  // [2·leaves], node i has the children 2i and 2i + 1; [0] is unused

  // A list of `count` elements; element i is leaf(i), and a `rebuild` follows once they are written.
  void resize(Index count) {
    for (leaves = 1; leaves < count;) leaves *= 2;
    ensure_shape(nodes, {2 * leaves});
    nodes.setZero();
  }
  double& leaf(Index i) { return nodes(leaves + i); }
  void rebuild() {
    for (Index n = leaves - 1; n > 0; --n) nodes(n) = nodes(2 * n) + nodes(2 * n + 1);
  }
  void set(Index i, double value) {
    leaf(i) = value;
    for (Index n = (leaves + i) / 2; n > 0; n /= 2) nodes(n) = nodes(2 * n) + nodes(2 * n + 1);
  }
  double total() const { return nodes.size() > 0 ? nodes(1) : 0; }
};

}  // namespace rbar
