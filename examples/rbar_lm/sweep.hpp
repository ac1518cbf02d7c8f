// Many training runs on the same data, side by side and restartable.
#pragma once

#include "arguments.hpp"
#include "sweep_plan.hpp"

namespace rbar_lm {

// Errors: a word of --only that is neither the name nor the folder of a run of the plan.
void require_known_runs(const SweepPlan&, const std::vector<std::string>& only);

// Trains what is not finished yet, `a.jobs` runs at once, and writes the tables into `a.out`. A run that fails leaves
// the others alone. Returns the program's exit code: 1 if a run failed. Errors, before any training: a run whose
// folder holds another run of this name, runs that would see different data, what a model's config refuses, and runs
// that `a.only` names and the plan does not.
int run_sweep(const SweepPlan&, const Arguments& a);

}  // namespace rbar_lm
