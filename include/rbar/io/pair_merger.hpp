// The heart of byte-pair encoding: merge the neighbouring pair of lowest rank, the leftmost of equals,
// until no neighbours can be merged. A linked list and a heap make that O(n log n) for any input, where
// rescanning the word would be O(n²): a megabyte of one letter is a single "word".
#pragma once

#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace rbar {

// (left, right) -> (rank, merged token): open addressing with linear probing, at most half full.
class MergeTable {
 public:
  static constexpr std::uint32_t no_rank = std::numeric_limits<std::uint32_t>::max();
  struct Merge {
    std::uint32_t rank = no_rank;  // no_rank: these two are no pair
    Token token = 0;
  };

  explicit MergeTable(std::size_t pairs = 0) : slots_(std::bit_ceil(2 * pairs + 2)) {}

  Merge find(Token left, Token right) const {
    const std::uint64_t key = make_key(left, right);
    const Slot& slot = slots_[slot_of(key)];
    return slot.key == key ? slot.merge : Merge{};
  }
  // False if the pair is there already. At most as many pairs as were announced.
  bool insert(Token left, Token right, Merge merge) {
    Slot& slot = slots_[slot_of(make_key(left, right))];
    if (slot.key != empty) return false;
    slot = {make_key(left, right), merge};
    return true;
  }

 private:
  static constexpr std::uint64_t empty = std::numeric_limits<std::uint64_t>::max();  // two tokens of -1
  struct Slot {
    std::uint64_t key = empty;
    Merge merge;
  };

  static std::uint64_t make_key(Token left, Token right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
  }
  std::size_t slot_of(std::uint64_t key) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = static_cast<std::size_t>((key * 0x9E3779B97F4A7C15u) >> 32) & mask;
    while (slots_[slot].key != key && slots_[slot].key != empty) slot = (slot + 1) & mask;
    return slot;
  }

  std::vector<Slot> slots_;
};

// Working memory, reused from word to word.
class PairMerger {
 public:
  explicit PairMerger(const MergeTable& table) : table_(table) {}

  void add(Token token) { symbols_.push_back({token}); }

  // Merges what was added, appends the result to `out`, and starts anew. Fewer than 2^31 symbols.
  void merge_into(std::vector<Token>& out) {
    const auto count = static_cast<std::int32_t>(symbols_.size());
    for (std::int32_t i = 0; i < count; ++i) {
      at(i).previous = i - 1;
      at(i).next = i + 1 < count ? i + 1 : none;
    }
    for (std::int32_t i = 0; i < count; ++i) rank_pair(i);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      const std::uint64_t candidate = heap_.back();
      heap_.pop_back();
      const auto i = static_cast<std::int32_t>(candidate & 0xffffffff);
      // Out of date if a neighbour has been merged since: the symbol then has another rank, or none.
      if (at(i).merge.rank != candidate >> 32) continue;
      const std::int32_t absorbed = at(i).next;
      at(i).token = at(i).merge.token;
      at(i).next = at(absorbed).next;
      at(absorbed).merge.rank = MergeTable::no_rank;
      if (at(i).next != none) at(at(i).next).previous = i;
      rank_pair(i);
      if (at(i).previous != none) rank_pair(at(i).previous);
    }
    for (std::int32_t i = count > 0 ? 0 : none; i != none; i = at(i).next) out.push_back(at(i).token);
    symbols_.clear();
  }

 private:
  static constexpr std::int32_t none = -1;
  struct Symbol {
    Token token;
    std::int32_t previous = none, next = none;
    MergeTable::Merge merge{};  // of this symbol with the next one
  };

  Symbol& at(std::int32_t i) { return symbols_[static_cast<std::size_t>(i)]; }

  void rank_pair(std::int32_t i) {
    Symbol& symbol = at(i);
    symbol.merge = symbol.next == none ? MergeTable::Merge{} : table_.find(symbol.token, at(symbol.next).token);
    if (symbol.merge.rank == MergeTable::no_rank) return;
    heap_.push_back(std::uint64_t{symbol.merge.rank} << 32 | static_cast<std::uint32_t>(i));
    std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  }

  const MergeTable& table_;
  std::vector<Symbol> symbols_;
  std::vector<std::uint64_t> heap_;  // rank << 32 | position, smallest first
};

}  // namespace rbar
