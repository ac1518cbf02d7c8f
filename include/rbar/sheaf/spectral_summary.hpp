// What is reported of a sheaf Laplacian's spectrum. It never feeds an output.
#pragma once

namespace rbar {

// How far the spectrum moved from one layer to the next.
enum class DriftLevel { none, mild, strong, severe };

constexpr const char* name_of(DriftLevel level) {
  constexpr const char* names[] = {"none", "mild", "strong", "severe"};
  return names[static_cast<int>(level)];
}

struct SpectralSummary {
  double lambda_2 = 0;  // second smallest eigenvalue
  double gap = 0;       // between the first two eigenvalues that differ (spectrum.hpp)
  double drift = 0;     // against the summary before it, relative
  DriftLevel level = DriftLevel::none;
};

}  // namespace rbar
