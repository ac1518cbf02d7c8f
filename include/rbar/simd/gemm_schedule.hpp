// Who packs and multiplies what when B is packed slice after slice, a group of slices at a time: some groups are packed
// while one is multiplied. Nobody waits for a whole group to be finished, only for what a task needs.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/simd/batch.hpp"
#include "rbar/simd/gemm_blocking.hpp"
#include "rbar/simd/scratch.hpp"

#include <algorithm>
#include <memory>

namespace rbar::simd::detail {

struct ChunkProgress {};  // kept by the calling thread

struct GemmSchedule {
  Index groups, panels, chunks;  // tasks that pack a group, and that multiply it with a chunk of A
  bool alone;                    // by one thread, group after group
  Index ahead;                   // groups packed before one is multiplied: two where that does not take long

  // Of a product of `rows` rows of A and `work` multiply-adds.
  GemmSchedule(Index groups_, Index panels_, Index chunks_, Index rows, Index work)
      : groups(groups_),
        panels(panels_),
        chunks(chunks_),
        alone(usable_threads() == 1 || work < 2 * gemm_min_work),
        ahead(std::min<Index>(groups_, rows <= 64 * usable_threads() ? 2 : 1)) {}

  // Groups that are in memory at once; group g is in place g % places(). One of them lets packing run ahead.
  Index places() const { return std::min(groups, alone ? 1 : 2 + ahead); }

  // pack(group, panel), multiply(group, chunk): a chunk meets the groups in their order.
  template <class Pack, class Multiply>
  void run(const Pack& pack, const Multiply& multiply) const {
    if (alone) {
      for (Index group = 0; group < groups; ++group) {
        for (Index panel = 0; panel < panels; ++panel) pack(group, panel);
        for (Index chunk = 0; chunk < chunks; ++chunk) multiply(group, chunk);
      }
      return;
    }
    const Index tasks = chunks + panels;
    TaskCounter packed[4], multiplied[4];  // of the groups that were in a place
    TaskCounter* const met = thread_scratch<TaskCounter, ChunkProgress>(chunks);
    for (Index chunk = 0; chunk < chunks; ++chunk) std::construct_at(met + chunk);
    // Step s packs group s and multiplies group s − ahead, the panels spread evenly among the chunks.
    parallel_steps(groups + ahead, tasks, [&](Index step, Index task) noexcept {
      const Index panel = task * panels / tasks, chunk = task - panel;
      if ((task + 1) * panels / tasks > panel) {
        if (step >= groups) return;
        const Index place = step % places();
        multiplied[place].wait_for(step / places() * chunks);
        pack(step, panel);
        packed[place].add();
      } else if (step >= ahead) {
        const Index group = step - ahead, place = group % places();
        packed[place].wait_for((group / places() + 1) * panels);
        met[chunk].wait_for(group);
        multiply(group, chunk);
        met[chunk].add();
        multiplied[place].add();
      }
    });
  }
};

}  // namespace rbar::simd::detail
