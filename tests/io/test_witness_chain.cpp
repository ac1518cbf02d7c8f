// Whatever is done to a chain of witnesses after it was sealed, in memory or in its file, is found.
#include "rbar/io/witness_chain.hpp"

#include "io/temporary_folder.hpp"
#include "rbar/io/witness_file.hpp"
#include "routing/witness_support.hpp"
#include "support/catch.hpp"

#include <sys/resource.h>

#include <csignal>
#include <set>

using namespace rbar;
using namespace witness_test;

namespace {

struct SealedChain {
  std::vector<Witness> chain;
  ChainHead head;
};

SealedChain sealed_chain(std::size_t count, std::uint64_t seed, Index most_tokens = 4) {
  Rng rng(seed);
  SealedChain sealed;
  while (sealed.chain.size() < count)
    sealed.chain.push_back(
        seal(random_trace(static_cast<Index>(rng.below(static_cast<std::uint64_t>(most_tokens))), rng), sealed.head));
  return sealed;
}

std::string contents(const std::filesystem::path& path) { return std::string(MappedFile(path).text()); }

// A file of `count` witnesses, and the sizes it had after each.
struct WitnessFileCopy {
  std::string bytes;
  std::vector<std::size_t> ends;
  ChainHead head;
};

WitnessFileCopy written_file(const test::TemporaryFolder& folder, std::size_t count, std::uint64_t seed) {
  const auto path = folder / ("written-" + std::to_string(seed));
  Rng rng(seed);
  WitnessFileCopy copy;
  WitnessFile file(path);
  copy.ends.push_back(contents(path).size());
  for (std::size_t i = 0; i < count; ++i) {
    file.append(random_trace(static_cast<Index>(rng.below(3)), rng));
    copy.ends.push_back(contents(path).size());
  }
  copy.bytes = contents(path);
  copy.head = file.head();
  return copy;
}

// True if a reader of a file with these bytes is told that something is wrong.
bool is_noticed(std::string_view bytes) {
  try {
    return detail::find_fault_in_bytes("changed", std::as_bytes(std::span(bytes)), {}).has_value();
  } catch (const Error&) {
    return true;
  }
}

}  // namespace

TEST_CASE("the hash is BLAKE2b-256", "[io]") {
  CHECK(to_hex(detail::blake2b({})) == "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8");
  CHECK(to_hex(detail::blake2b(std::as_bytes(std::span("abc", 3)))) ==
        "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
}

TEST_CASE("a chain as it was sealed is intact", "[io]") {
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    const auto [chain, head] = sealed_chain(seed % 7, seed);
    INFO("seed " << seed);
    CHECK(head.count == chain.size());
    CHECK_FALSE(find_fault(chain));
    CHECK_FALSE(find_fault(chain, head));
  }
  CHECK(sealed_chain(3, 1).head == sealed_chain(3, 1).head);
}

TEST_CASE("any value changed in any witness is found where it was changed", "[io]") {
  const auto [chain, head] = sealed_chain(4, 2);
  std::set<std::string> names;
  int tampered = 0;
  for (std::size_t place = 0; place < chain.size(); ++place)
    for (int leaf = 0;; ++leaf) {
      auto changed = chain;
      int index = 0;
      std::string name;
      for_each_leaf(changed[place], [&](const char* leaf_name, auto& value) {
        if (index++ != leaf) return;
        Tamper{}(value);
        name = leaf_name;
      });
      if (name.empty()) break;
      ++tampered;
      names.insert(name);
      const auto fault = find_fault(changed);
      INFO("witness " << place << ", " << name);
      REQUIRE(fault);
      CHECK(fault->witness == place);
      CHECK_FALSE(fault->reason.empty());
    }
  CHECK(tampered > 4 * (32 + 32));
  // Every field of the record was among them.
  for (const char* name : {"sequence_number",
                           "decision",
                           "routed",
                           "lane",
                           "energy_in",
                           "energy_out",
                           "layers_used",
                           "exit",
                           "emitted",
                           "escalated",
                           "tokens",
                           "query",
                           "key",
                           "energy",
                           "top_residuals",
                           "residuals",
                           "blocks_visited",
                           "blocks_skipped",
                           "skipped_mass",
                           "lambda_2",
                           "gap",
                           "drift",
                           "level",
                           "spectra",
                           "reflex",
                           "standard",
                           "deep",
                           "max",
                           "pressure",
                           "previous_hash",
                           "hash"})
    CHECK(names.count(name) == 1);
  CHECK(names.size() == 31);
}

TEST_CASE("witnesses swapped, left out, inserted or written anew are found", "[io]") {
  const auto [chain, head] = sealed_chain(5, 3);
  for (std::size_t a = 0; a < chain.size(); ++a)
    for (std::size_t b = a + 1; b < chain.size(); ++b) {
      auto changed = chain;
      std::swap(changed[a], changed[b]);
      CHECK(find_fault(changed)->witness == a);
    }
  for (std::size_t place = 0; place < chain.size(); ++place) {
    auto changed = chain;
    changed.erase(changed.begin() + static_cast<std::ptrdiff_t>(place));
    CHECK(find_fault(changed, head)->witness == place);
    // The last one gone is a chain as good as any: the head that was kept knows better.
    CHECK(find_fault(changed).has_value() == (place + 1 < chain.size()));
    changed = chain;
    changed.insert(changed.begin() + static_cast<std::ptrdiff_t>(place), chain[place]);
    CHECK(find_fault(changed)->witness == place + 1);
    changed = chain;
    changed[place] = sealed_chain(5, 4).chain[place];  // sealed itself, but after another one
    CHECK(find_fault(changed, head)->witness == (place == 0 ? 1 : place));
  }
  // Sealed again after a change: every link is whole, and only the kept head tells.
  ChainHead forged_head;
  std::vector<Witness> forged;
  for (const Witness& witness : chain) {
    SequenceTrace trace = witness.trace;
    trace.pressure = 0.25;
    forged.push_back(seal(std::move(trace), forged_head));
  }
  CHECK_FALSE(find_fault(forged));
  CHECK_THAT(find_fault(forged, head)->reason, ContainsText("written anew"));
}

TEST_CASE("a trace with NaN is not sealed, and the chain goes on without it", "[io]") {
  auto [chain, head] = sealed_chain(2, 5);
  const ChainHead before = head;
  SequenceTrace trace;
  trace.skipped_mass = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(seal(trace, head), ContainsText("skipped_mass"));
  CHECK(head == before);
}

TEST_CASE("a file gives back the chain that was appended, over several openings", "[io]") {
  const test::TemporaryFolder folder;
  std::vector<Witness> appended;
  Rng rng(6);
  ChainHead head;
  for (int opening = 0; opening < 4; ++opening) {
    WitnessFile file(folder / "chain");
    CHECK(file.head() == head);
    CHECK(file.cut_bytes() == 0);
    for (int i = 0; i < opening; ++i) appended.push_back(file.append(random_trace(2, rng)));
    head = file.head();
    CHECK_THROWS_WITH(WitnessFile(folder / "chain"), ContainsText("nobody else"));
  }
  const auto loaded = load_witnesses(folder / "chain");
  REQUIRE(loaded.size() == appended.size());
  for (std::size_t i = 0; i < loaded.size(); ++i) CHECK(loaded[i].hash == appended[i].hash);
  CHECK_FALSE(find_fault(loaded, head));
  CHECK_FALSE(find_fault(folder / "chain", head));
  CHECK(find_fault(folder / "chain", ChainHead{head.count + 1, head.hash})->witness == head.count);
}

TEST_CASE("a file cut off anywhere keeps the witnesses before the cut, and can be appended to", "[io]") {
  const test::TemporaryFolder folder;
  const auto whole = written_file(folder, 3, 7);
  for (std::size_t size = 0; size < whole.bytes.size(); ++size) {
    INFO("cut to " << size << " of " << whole.bytes.size() << " bytes");
    const std::string cut = whole.bytes.substr(0, size);
    const auto kept = static_cast<std::size_t>(std::upper_bound(whole.ends.begin(), whole.ends.end(), size) -
                                               whole.ends.begin());  // ends[0]: no witness
    const std::size_t witnesses = kept == 0 ? 0 : kept - 1;
    const bool torn = kept == 0 ? size > 0 : size > whole.ends[kept - 1];
    std::size_t read = 0;
    const auto state = detail::scan_witnesses("cut", std::as_bytes(std::span(cut)), [&](const Witness&) { ++read; });
    CHECK(read == witnesses);
    CHECK_FALSE(state.fault);
    CHECK(is_noticed(cut) == torn);
    if (size % 211 != 1 && torn) continue;  // an append waits for the disk
    const auto path = folder.write("cut", cut);
    CHECK(find_fault(path, whole.head));
    CHECK(load_witnesses(path).size() == witnesses);
    {
      WitnessFile file(path);
      CHECK(file.cut_bytes() == (torn ? size - (kept == 0 ? 0 : whole.ends[kept - 1]) : 0));
      CHECK(file.append({}).sequence_number == witnesses);
    }
    CHECK_FALSE(find_fault(path));
    CHECK(load_witnesses(path).size() == witnesses + 1);
  }
}

TEST_CASE("what is cut off is kept, and a kept head refuses a file that lost witnesses", "[io]") {
  const test::TemporaryFolder folder;
  const auto whole = written_file(folder, 3, 15);
  // Length and complement of the second witness changed together: everything from there on looks torn.
  std::string changed = whole.bytes;
  changed[whole.ends[1] + 5] = '\x01';
  changed[whole.ends[1] + 13] = '\xfe';
  const auto path = folder.write("changed", changed);
  CHECK(load_witnesses(path).size() == 1);
  CHECK_THROWS_WITH(WitnessFile(path, whole.head), ContainsText("expected 3 witnesses, got 1"));
  CHECK(contents(path) == changed);
  CHECK_FALSE(std::filesystem::exists(folder / "changed.torn"));
  { CHECK(WitnessFile(path).cut_bytes() == changed.size() - whole.ends[1]); }
  CHECK(contents(folder / "changed.torn") == changed.substr(whole.ends[1]));
  CHECK(contents(path) == changed.substr(0, whole.ends[1]));
  // Another tail goes after it.
  std::string again = whole.bytes.substr(0, whole.ends[1] + 7);
  folder.write("changed", again);
  { WitnessFile reopened(path); }
  CHECK(contents(folder / "changed.torn") == changed.substr(whole.ends[1]) + again.substr(whole.ends[1]));

  // A head that was kept earlier is one that the file went past, unless it is another chain's.
  const auto intact = folder.write("intact", whole.bytes);
  CHECK(WitnessFile(intact, whole.head).head() == whole.head);
  const auto chain = load_witnesses(intact);
  CHECK(WitnessFile(intact, ChainHead{2, chain[1].hash}).head() == whole.head);
  CHECK_NOTHROW(WitnessFile(intact, ChainHead{}));
  CHECK_THROWS_WITH(WitnessFile(intact, ChainHead{2, chain[0].hash}), ContainsText("written anew"));
}

TEST_CASE("any byte of a file changed, left out or added is noticed", "[io]") {
  const test::TemporaryFolder folder;
  const auto small = written_file(folder, 2, 8);
  REQUIRE_FALSE(is_noticed(small.bytes));
  Rng rng(9);
  for (std::size_t place = 0; place < small.bytes.size(); ++place) {
    INFO("byte " << place);
    int unnoticed = 0;
    for (int flip = 1; flip < 256; ++flip) {
      std::string changed = small.bytes;
      changed[place] = static_cast<char>(changed[place] ^ flip);
      // Nor may it be taken for a torn tail, which opening the file would cut off.
      const auto bytes = std::as_bytes(std::span(changed));
      if (place < small.ends[0] ? !is_noticed(changed)
                                : !detail::scan_witnesses("", bytes, [](const Witness&) {}).fault)
        ++unnoticed;
    }
    CHECK(unnoticed == 0);
    CHECK(is_noticed(small.bytes.substr(0, place) + small.bytes.substr(place + 1)));
    CHECK(is_noticed(small.bytes.substr(0, place) + "x" + small.bytes.substr(place)));
  }
  CHECK(is_noticed(small.bytes + '\0'));
  const auto large = written_file(folder, 20, 10);
  for (int trial = 0; trial < 1000; ++trial) {
    std::string changed = large.bytes;
    const auto place = rng.below(changed.size());
    changed[place] = static_cast<char>(changed[place] ^ static_cast<char>(1 + rng.below(255)));
    INFO("trial " << trial << ", byte " << place);
    CHECK(is_noticed(changed));
  }
}

TEST_CASE("files of strangers are errors", "[io]") {
  const test::TemporaryFolder folder;
  CHECK_THROWS_WITH(load_witnesses(folder / "none"), ContainsText("none"));
  CHECK_THROWS_WITH(load_witnesses(folder.write("text", "Dear Sir or Madam,")), ContainsText("a file of witnesses"));
  CHECK_THROWS_WITH(WitnessFile(folder / "text"), ContainsText("a file of witnesses"));
  CHECK_THROWS_AS(WitnessFile(folder / ""), Error);
  CHECK_THROWS_AS(WitnessFile(folder / "no/such/folder"), Error);

  const std::string label = "rbar witnesses 1\n";
  const auto frame = [](std::uint64_t length, const std::string& rest) {
    std::string bytes;
    for (const std::uint64_t word : {length, ~length})
      for (int shift = 0; shift < 64; shift += 8) bytes += static_cast<char>(word >> shift & 0xff);
    return bytes + rest;
  };
  CHECK_THROWS_WITH(load_witnesses(folder.write("nothing", label + frame(0, std::string(32, 'x')))),
                    ContainsText("witness 0"));
  CHECK_THROWS_WITH(load_witnesses(folder.write("zeros", label + std::string(500, '\0'))), ContainsText("complement"));
  CHECK(load_witnesses(folder.write("endless", label + frame(~std::uint64_t{0}, std::string(99, 'x')))).empty());
  CHECK(find_fault(folder / "endless")->witness == 0);

  Rng rng(11);
  for (int trial = 0; trial < 1000; ++trial) {
    std::string noise;
    for (std::uint64_t size = rng.below(200); size > 0; --size) noise += static_cast<char>(rng.below(256));
    CHECK((noise.empty() || is_noticed(label + (trial % 2 ? noise : frame(noise.size(), noise) + noise))));
  }
}

TEST_CASE("a write that fails leaves the file and the chain as they were", "[io]") {
  const test::TemporaryFolder folder;
  WitnessFile file(folder / "chain");
  Rng rng(12);
  file.append(random_trace(2, rng));
  const std::string before = contents(folder / "chain");
  const ChainHead head = file.head();

  // A limit on file size fails in write(2) the way a full disk does: after as many bytes as still fit.
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit tight{before.size() + 100, limit.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &tight);
  std::string message;
  try {
    file.append(random_trace(50, rng));
  } catch (const Error& error) {
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  CHECK_THAT(message, ContainsText("a complete write") && ContainsText("File too large"));
  CHECK(contents(folder / "chain") == before);
  CHECK(file.head() == head);
  CHECK(file.append({}).sequence_number == 1);
  CHECK_FALSE(find_fault(folder / "chain", file.head()));
}
