// What a sparse sheaf attention may leave out, and by which rule. Keys are bundled in blocks; a row skips whole blocks.
//
//   keep_coherent    skips what provably does not matter: the output of every row and head differs from the dense one
//                    by ε·max‖v‖ at most, before the output projection (block_bound.hpp has the proof)
//   keep_incoherent  keeps a fixed share of the blocks, those whose smallest possible residual is largest, as ADR-015
//                    §4 has it. The softmax gives just these the least weight: no bound, for comparison
#pragma once

#include "rbar/core/error.hpp"
#include "rbar/core/tensor.hpp"

#include <string_view>

namespace rbar {

enum class SparsityPolicy { keep_coherent, keep_incoherent };

inline constexpr SparsityPolicy all_sparsity_policies[] = {SparsityPolicy::keep_coherent,
                                                           SparsityPolicy::keep_incoherent};
constexpr const char* name_of(SparsityPolicy policy) {
  return policy == SparsityPolicy::keep_coherent ? "keep_coherent" : "keep_incoherent";
}
constexpr bool parse(std::string_view text, SparsityPolicy& policy) {
  for (const SparsityPolicy candidate : all_sparsity_policies)
    if (text == name_of(candidate)) return policy = candidate, true;
  return false;
}

struct SparsityConfig {
  bool enabled = false;
  SparsityPolicy policy = SparsityPolicy::keep_coherent;
  double epsilon = 1e-3;    // keep_coherent: ‖y − y_dense‖ ≤ epsilon·max‖v‖
  double keep_share = 0.1;  // keep_incoherent: of the blocks that a row could see
  Index block = 64;         // keys in a block at most
  Index chunk = 64;         // causal: keys are bundled once so many have come; until then they are always seen
  Index clusters = 64;      // groups of similar keys that blocks are filled from at a time, at most

  void validate() const {
    constexpr const char* where = "SparsityConfig";
    require(epsilon >= 0 && epsilon < 2, where, "epsilon", "at least 0, below 2 (where everything may go)", epsilon);
    require(keep_share >= 0 && keep_share <= 1, where, "keep_share", "0 to 1", keep_share);
    require(block >= 1 && block <= 1024, where, "block", "1 to 1024", block);
    require(chunk >= 1, where, "chunk", "at least 1", chunk);
    require(clusters >= 1 && clusters <= 1024, where, "clusters", "1 to 1024", clusters);
  }

  template <class Visit>
  void fields(Visit&& visit) {
    visit("enabled", enabled);
    visit("policy", policy);
    visit("epsilon", epsilon);
    visit("keep_share", keep_share);
    visit("block", block);
    visit("chunk", chunk);
    visit("clusters", clusters);
  }
};

}  // namespace rbar
