// Many training runs on the same data, side by side and restartable.
#pragma once

#include "arguments.hpp"
#include "sweep_plan.hpp"

namespace rbar_lm {

// Trains what is not finished yet, `a.jobs` runs at once, and writes the tables into `a.out`. A run that fails leaves
// the others alone. Returns the program's exit code: 1 if a run failed. Errors, before any training: a run whose
// folder holds another run of this name, runs that would see different data, and what a model's config refuses.
int run_sweep(const SweepPlan&, const Arguments& a);

}  // namespace rbar_lm
