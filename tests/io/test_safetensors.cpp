// Safetensors: round trips, conversions, atomic writing, and files that lie.
#include "rbar/io/safetensors.hpp"

#include "io/temporary_folder.hpp"
#include "rbar/core/random.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <cstdlib>
#include <numeric>

namespace {

std::vector<std::byte> safetensors_bytes(const std::string& header, std::size_t data_size, std::uint64_t length) {
  std::vector<std::byte> bytes(8 + header.size() + data_size);
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  for (std::size_t i = 0; i < data_size; ++i) bytes[8 + header.size() + i] = static_cast<std::byte>(i);
  return bytes;
}
std::vector<std::byte> safetensors_bytes(const std::string& header, std::size_t data_size) {
  return safetensors_bytes(header, data_size, header.size());
}

}  // namespace

TEST_CASE("safetensors survive a round trip", "[io]") {
  const test::TemporaryFolder folder;
  rbar::Tensor<float, 3> weight(2, 3, 5);
  std::iota(weight.data(), weight.data() + weight.size(), -7.25f);
  rbar::Tensor<double, 1> bias(3);
  bias.setConstant(1.0 / 3);
  const rbar::Tensor<float, 2> empty(0, 4);
  const double scalar = 42.5;
  const std::vector<std::int64_t> integers = {-3, 1LL << 40};
  const std::uint8_t odd[3] = {1, 2, 255};
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"note", "\"ünïcode\"\n\t\\ 日本"}};
  const rbar::TensorEntry entries[] = {rbar::tensor_entry("odd", std::span<const std::uint8_t>(odd), {3}),
                                       rbar::tensor_entry("weight", weight),
                                       rbar::tensor_entry("bias", bias),
                                       rbar::tensor_entry("empty", empty),
                                       rbar::tensor_entry("π \"quoted\"", std::span<const double>(&scalar, 1), {}),
                                       rbar::tensor_entry("integers", std::span<const std::int64_t>(integers), {2})};
  rbar::write_safetensors(folder / "a.safetensors", entries, metadata);
  CHECK(folder.count() == 1);

  const rbar::SafetensorsFile file(folder / "a.safetensors");
  CHECK(file.metadata() == metadata);
  CHECK(file.entries().size() == 6);
  for (const auto& entry : file.entries())  // aligned for the next reader
    CHECK(reinterpret_cast<std::uintptr_t>(entry.data.data()) % rbar::size_of(entry.dtype) == 0);
  const auto read = file.tensor<float, 3>("weight");
  CHECK(std::equal(read.data(), read.data() + read.size(), weight.data()));
  CHECK(file.tensor<double, 1>("bias")(2) == 1.0 / 3);
  CHECK(file.tensor<float, 1>("bias")(2) == 1.0f / 3);
  CHECK(file.tensor<float, 2>("empty").dimension(1) == 4);
  CHECK(file.tensor<double, 0>("π \"quoted\"")() == 42.5);
  CHECK(file.tensor<std::int64_t, 1>("integers")(1) == 1LL << 40);
  CHECK(file.tensor<int, 1>("odd")(2) == 255);
  CHECK(file.contains("bias"));
  CHECK_FALSE(file.contains("gone"));
  CHECK_THROWS_AS(file.at("gone"), rbar::Error);
  CHECK_THROWS_WITH((file.tensor<float, 2>("weight")), ContainsText("expected rank 2, got shape [2, 3, 5]"));
  CHECK_THROWS_WITH((file.tensor<float, 1>("integers")), ContainsText("expected F32, got I64"));
  CHECK_THROWS_WITH((file.tensor<int, 1>("integers")), ContainsText("expected values that fit I32, got 1099511627776"));
  std::vector<float> small(4);
  CHECK_THROWS_AS(file.copy_to<float>("weight", small), rbar::Error);

  // The reader's own entries can be written again, and nothing changes.
  rbar::write_safetensors(folder / "b.safetensors", file.entries(), file.metadata());
  CHECK(rbar::MappedFile(folder / "b.safetensors").text() == rbar::MappedFile(folder / "a.safetensors").text());

  rbar::write_safetensors(folder / "none.safetensors", {});
  CHECK(rbar::SafetensorsFile(folder / "none.safetensors").entries().empty());
}

TEST_CASE("half precision is read exactly", "[io]") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int sign = bits & 0x8000 ? -1 : 1, exponent = static_cast<int>(bits >> 10 & 31);
    const double mantissa = bits & 0x3ff;
    const float half = rbar::to_float(rbar::Half{static_cast<std::uint16_t>(bits)});
    const double expected = exponent == 0    ? sign * std::ldexp(mantissa, -24)
                            : exponent == 31 ? (mantissa == 0 ? sign * HUGE_VAL : NAN)
                                             : sign * std::ldexp(1024 + mantissa, exponent - 25);
    if (std::isnan(expected) ? !std::isnan(half) : half != expected || std::signbit(half) != (sign < 0)) {
      CAPTURE(bits);
      REQUIRE(half == expected);
    }
    const float brain = rbar::to_float(rbar::BFloat16{static_cast<std::uint16_t>(bits)});
    REQUIRE(std::bit_cast<std::uint32_t>(brain) == bits << 16);
  }
}

TEST_CASE("data that is not aligned, of every dtype", "[io]") {
  const std::string header =
      R"({"h":{"dtype":"F16","shape":[2],"data_offsets":[1,5]},"f":{"dtype":"F32","shape":[],"data_offsets":[5,9]},)"
      R"("m":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[9,11]}} )";
  const auto bytes = safetensors_bytes(header, 11);
  const test::TemporaryFolder folder;
  rbar::write_file_atomically(folder / "odd", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  const rbar::SafetensorsFile file(folder / "odd");
  CHECK(file.entries().front().name == "m");
  CHECK(file.tensor<int, 1>("m")(0) == 0);
  CHECK(file.tensor<float, 0>("f")() == std::bit_cast<float>(0x08070605));
  CHECK(file.tensor<double, 1>("h")(1) == rbar::to_float(rbar::Half{0x0403}));
  CHECK(file.tensor<double, 1>("b")(0) == std::bit_cast<float>(0x0a090000));
}

TEST_CASE("hostile safetensors are an error that says why", "[io]") {
  const auto one = [](const std::string& fields) { return "{\"w\":{" + fields + "}}"; };
  const std::string good = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  REQUIRE_NOTHROW(rbar::parse_safetensors(safetensors_bytes(one(good), 8), "good"));
  struct Case {
    std::string header, message;
    std::size_t data_size = 8;
  };
  const Case cases[] = {
      {"", "header length: expected 1 to 8, got 0"},
      {"[]", "expected an object, got '[]'"},
      {" {}", "expected an object, got ' {}'"},
      {"{", "valid JSON"},
      {"{}{}", "valid JSON"},
      {one(good) + std::string(1, '\0'), "a NUL byte"},
      {"{\"\xff\":1}", "UTF-8"},
      {"{\"a\":{\"dtype\":\"\xc0\x80\"}}", "UTF-8"},
      {R"({"w":[]})", "an object as description of tensor 'w', got an array"},
      {R"({"w":null})", "got null"},
      {"{\"w\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}", "got an array"},
      {one("\"shape\":" + std::string(100'000, '[')), "sizes from 0 to 2^63"},
      {one(R"("dtype":"F31","shape":[2],"data_offsets":[0,8])"), "expected a known dtype of tensor 'w', got 'F31'"},
      {one(R"("dtype":7,"shape":[2],"data_offsets":[0,8])"), "a string as dtype"},
      {one(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"), "an array as shape"},
      {one(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), "in the shape of tensor 'w', got -2"},
      {one(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), "got 2.0"},
      {one(R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])"), "got a string"},
      {one(R"("dtype":"F32","shape":[true],"data_offsets":[0,8])"), "got true"},
      {one(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8])"), "sizes below 2^63"},
      {one(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8])"), "got 99999999999999999999"},
      {one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8])"), "a size below 2^64 bytes"},
      {one(R"("dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8])"), "a size below 2^64 bytes"},
      {one(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), "of 12 bytes (F32 [3]), got 8 bytes"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), "inside the 8 bytes of data, got [8, 0)"},
      {one(R"("dtype":"F32","shape":[3],"data_offsets":[0,12])"), "got [0, 12)"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,18446744073709551615])"), "inside the 8"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[-1,7])"), "two byte offsets"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4,8])"), "two data_offsets of tensor 'w', got 3"},
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[8])"), "got 1"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), "without overlap or hole, got [4, 8)"},
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"), "expected 4 bytes of data, got 8 bytes"},
      {one(good), "inside the 7 bytes", 7},
      {one(good), "expected 8 bytes of data, got 9 bytes", 9},
      {one(R"("dtype":"F32","shape":[2])"), "got no offsets"},
      {one(R"("shape":[2],"data_offsets":[0,8])"), "got no dtype"},
      {one(R"("dtype":"F32","data_offsets":[0,8])"), "got no shape"},
      {one(good + ",\"strides\":[1]"), "got 'strides'"},
      {one(good + ",\"shape\":[2]"), "shape once of tensor 'w', got twice"},
      {one("\"dtype\":\"F64\"," + good), "dtype once of tensor 'w', got twice"},
      {"{\"w\":{" + good + "},\"w\":{" + good + "}}", "distinct tensor names, got 'w' twice"},
      {R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
       "tensor 'b' from byte 5, without overlap or hole"},
      {R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
       "without overlap"},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
       "or hole"},
      {R"({"__metadata__":[],"w":{)" + good + "}}", "an object as __metadata__"},
      {R"({"__metadata__":{"a":1},"w":{)" + good + "}}", "strings in __metadata__, got a number"},
      {R"({"__metadata__":{"a":{"b":"c"}},"w":{)" + good + "}}", "strings in __metadata__, got an object"},
      {R"({"__metadata__":{"a":"1","a":"2"},"w":{)" + good + "}}", "distinct metadata names"},
      {R"({"__metadata__":{},"__metadata__":{},"w":{)" + good + "}}", "distinct tensor names"},
  };
  for (const auto& [header, message, data_size] : cases) {
    CAPTURE(header.substr(0, 200));
    CHECK_THROWS_WITH(rbar::parse_safetensors(safetensors_bytes(header, data_size), "hostile"),
                      ContainsText(message) && Catch::Matchers::StartsWith("SafetensorsFile: hostile: header"));
  }
  for (const std::uint64_t length : {59ull, 100'000'001ull, ~0ull, ~0ull - 7, 1ull << 63})
    CHECK_THROWS_WITH(rbar::parse_safetensors(safetensors_bytes(one(good), 8, length), "hostile"),
                      ContainsText("header"));
  for (std::size_t size = 0; size < 8; ++size)
    CHECK_THROWS_AS(rbar::parse_safetensors(std::vector<std::byte>(size), "short"), rbar::Error);
}

TEST_CASE("random damage to a safetensors file is an error or harmless, never a crash", "[io]") {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]},"c":{"dtype":"I64","shape":[0,7],"data_offsets":[26,26]},)"
      R"("d":{"dtype":"BOOL","shape":[6],"data_offsets":[26,32]}})";
  const auto valid = safetensors_bytes(header, 32);
  const std::string alphabet = "0123456789{}[]\",:-.eE \\\xff\xc3";
  rbar::Rng rng(20240);
  int accepted = 0;
  constexpr int attempts = 20'000;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    auto bytes = valid;
    for (std::uint64_t edits = 1 + rng.below(3); edits > 0 && !bytes.empty(); --edits) {
      const auto at = static_cast<std::ptrdiff_t>(rng.below(bytes.size()));
      const auto random = static_cast<std::byte>(
          rng.below(4) == 0 ? rng.below(256) : static_cast<unsigned char>(alphabet[rng.below(alphabet.size())]));
      switch (rng.below(5)) {
        case 0:
          bytes.insert(bytes.begin() + at, random);
          break;
        case 1:
          bytes.erase(bytes.begin() + at);
          break;
        case 2:
          bytes.resize(static_cast<std::size_t>(at) + 1);
          break;
        default:
          bytes[static_cast<std::size_t>(at)] = random;
      }
    }
    // An exact heap copy, so that a sanitizer sees the first byte too far.
    const std::vector<std::byte> copy(bytes.begin(), bytes.end());
    try {
      const auto parsed = rbar::parse_safetensors(copy, "damaged");
      ++accepted;
      for (const auto& entry : parsed.entries) {
        std::vector<float> values(entry.data.size() / rbar::size_of(entry.dtype));
        try {
          rbar::convert<float>("fuzz", entry.name, entry.dtype, entry.data, values);
        } catch (const rbar::Error&) {
        }
      }
    } catch (const rbar::Error&) {
    }
  }
  CHECK(accepted > attempts / 100);  // damage to the data alone is none
  CHECK(accepted < attempts / 2);
}

TEST_CASE("writing refuses what no reader would accept", "[io]") {
  const test::TemporaryFolder folder;
  const float values[2] = {1, 2};
  const auto entry = [&](std::string name, std::vector<std::int64_t> shape) {
    return rbar::tensor_entry(std::move(name), std::span<const float>(values), std::move(shape));
  };
  const auto write = [&](std::vector<rbar::TensorEntry> entries, std::map<std::string, std::string> metadata = {}) {
    rbar::write_safetensors(folder / "w", entries, metadata);
  };
  CHECK_THROWS_AS(write({entry("a", {2}), entry("a", {2})}), rbar::Error);
  CHECK_THROWS_AS(write({entry("__metadata__", {2})}), rbar::Error);
  CHECK_THROWS_AS(write({entry("a", {3})}), rbar::Error);
  CHECK_THROWS_AS(write({entry("a", {-1, -2})}), rbar::Error);
  CHECK_THROWS_AS(write({entry("a\xff", {2})}), rbar::Error);
  CHECK_THROWS_AS(write({entry("a", {2})}, {{"note", "\xff"}}), rbar::Error);
  CHECK(folder.count() == 0);
}

TEST_CASE("files written by PyTorch load", "[io]") {
  const char* chosen = std::getenv("RBAR_GOLDEN_DIR");
  const std::filesystem::path folder = chosen != nullptr && *chosen != '\0' ? chosen : RBAR_GOLDEN_DIR;
  int files = 0;
  for (const auto& found : std::filesystem::recursive_directory_iterator(folder)) {
    if (found.path().extension() != ".safetensors") continue;
    const rbar::SafetensorsFile file(found.path());
    CHECK_FALSE(file.entries().empty());
    ++files;
  }
  CHECK(files > 0);
}
