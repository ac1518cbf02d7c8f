#include "rbar/coherence/phase_coherence.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

using namespace rbar;

TEST_CASE("coherence: every metric of the package", "[golden]") {
  for (const auto& path : golden::files("cort_coherence")) {
    INFO(path);
    const SafetensorsFile file(path);
    const auto hidden = file.tensor<float, 3>("hidden");
    CHECK(golden::excess(compute_phase_coherence(hidden), file.tensor<float, 2>("token")) <= 1);
    CHECK(golden::excess(compute_sequence_coherence(hidden), file.tensor<float, 1>("sequence")) <= 1);
    CHECK(golden::excess(r_bar_from_phases(file.tensor<float, 3>("phases")), file.tensor<float, 2>("r_bar")) <= 1);

    // "local5", "cross4": the number is the window or the offsets.
    int windows = 0;
    for (const auto& entry : file.entries()) {
      const bool local = entry.name.starts_with("local"), cross = entry.name.starts_with("cross");
      if (!local && !cross) continue;
      const Index size = std::stol(entry.name.substr(5));
      INFO(entry.name);
      const auto r = local ? compute_local_coherence(hidden, size, Causality::reference)
                           : compute_cross_coherence(hidden, size, Causality::reference);
      CHECK(golden::excess(r, file.tensor<float, 2>(entry.name)) <= 1);
      ++windows;
    }
    CHECK(windows > 0);
  }
}
