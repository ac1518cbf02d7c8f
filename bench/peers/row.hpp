// The programs' side of compare.py. A program holds families of rows ("sheaf"), a row is a family and its sizes
// ("sheaf 4096 1"). It reads commands from its standard input and answers each with one line of JSON:
//
//   prepare ROW FOLDER   makes the row's inputs, runs it once, writes inputs and outputs into FOLDER as raw numbers
//                        (NAME.raw); answers {"flops": ..., "peers": {WAY: difference}}: what is compared within the
//                        process
//   time WAY SECONDS     runs "rbar" or that peer for about so long, at least once: {"seconds": median of a run,
//   "fma_peak": ...}
//
// Whoever is compared reads the inputs, computes the same and compares its outputs with ours before anybody is timed.
#pragma once

#include "../support.hpp"

#include "rbar/core/parameters.hpp"
#include "rbar/core/random.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <map>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace rbar::peers {

struct Numbers {
  std::string name;
  std::span<const std::byte> bytes;
};
template <class Tensorial>
Numbers numbers(std::string name, const Tensorial& tensor) {
  return {std::move(name), std::as_bytes(elements(tensor))};
}

// A peer that lives in this process, and its largest difference from our outputs, of the largest of them.
struct Peer {
  std::function<void()> run;
  std::function<double()> difference;
};

struct Row {
  double flops = 0;  // of a run, multiply-adds counted twice
  std::function<void()> run;
  std::vector<Numbers> inputs;                    // written before the first run,
  std::function<std::vector<Numbers>()> outputs;  // written after it
  std::map<std::string, Peer> peers;

  template <class Layer>
  void add_parameters(const Layer& layer) {
    for (const auto& parameter : parameters_of(layer))
      inputs.push_back({"parameter." + parameter.name, std::as_bytes(parameter.values())});
  }
};

using Family = std::function<Row(std::span<const Index> sizes)>;

inline void fill_normal(auto& tensor, std::uint64_t seed, double deviation = 1) {
  Rng rng(seed);
  for (auto& value : elements(tensor))
    value = static_cast<std::remove_reference_t<decltype(value)>>(rng.normal(0, deviation));
}

namespace detail {

inline void write(const std::string& folder, std::span<const Numbers> list) {
  for (const Numbers& entry : list) {
    const std::string path = folder + "/" + entry.name + ".raw";
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(entry.bytes.data()), static_cast<std::streamsize>(entry.bytes.size()));
    file.flush();
    require(file.good(), "peers", path, "a complete write", "an error");
  }
}

// A peer's threads may still spin where they wait for their next task: let them fall asleep first.
inline double median_seconds(const std::function<void()>& run, double budget) {
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::vector<double> seconds;
  const double begin = bench::now();
  do {
    const double start = bench::now();
    run();
    seconds.push_back(bench::now() - start);
  } while (bench::now() - begin < budget);
  return bench::median(seconds);
}

}  // namespace detail

// The one argument is the number of threads.
inline int serve(int argc, char** argv, const std::map<std::string, Family>& families) {
  if (argc != 2) return std::fprintf(stderr, "usage: %s THREADS (compare.py starts it)\n", argv[0]), 2;
  set_num_threads(std::max(1, std::atoi(argv[1])));
  std::printf("{\"name\": \"rbar %s, %s, %s\"}\n", RBAR_VERSION_STRING, simd::architecture(),
              bench::compiler().c_str());
  std::fflush(stdout);

  Row row;
  char line[4096];
  while (std::fgets(line, sizeof line, stdin)) {
    std::istringstream words(line);
    const std::vector<std::string> word{std::istream_iterator<std::string>(words), {}};
    if (word.size() >= 3 && word[0] == "prepare") {
      const auto family = families.find(word[1]);
      require(family != families.end(), argv[0], "family of rows", "one that it has", word[1]);
      std::vector<Index> sizes;
      for (std::size_t i = 2; i + 1 < word.size(); ++i) sizes.push_back(std::atoll(word[i].c_str()));
      row = Row{};  // its memory goes before the next one's comes
      row = family->second(sizes);
      detail::write(word.back(), row.inputs);
      row.run();
      detail::write(word.back(), row.outputs());
      std::printf("{\"flops\": %.6g, \"peers\": {", row.flops);
      for (const char* separator = ""; const auto& [name, peer] : row.peers) {
        peer.run();
        std::printf("%s\"%s\": %.3g", std::exchange(separator, ", "), name.c_str(), peer.difference());
      }
      std::printf("}}\n");
    } else if (word.size() == 3 && word[0] == "time") {
      const auto& run = word[1] == "rbar" ? row.run : row.peers.at(word[1]).run;
      const double before = bench::fma_peak(), seconds = detail::median_seconds(run, std::atof(word[2].c_str()));
      std::printf("{\"seconds\": %.6g, \"fma_peak\": %.4g}\n", seconds, std::max(before, bench::fma_peak()));
    } else {
      return std::fprintf(stderr, "%s: unknown command: %s", argv[0], line), 2;
    }
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace rbar::peers
