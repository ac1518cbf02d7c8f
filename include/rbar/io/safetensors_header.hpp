// The header of a safetensors file: parsed with a state machine on JSON events, because a JSON
// document object keeps the last of two equal names silently, and recursion depth would be the file's choice.
#pragma once

#include "rbar/core/error.hpp"
#include "rbar/io/dtype.hpp"
#include "rbar/io/file.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rbar {

struct TensorEntry {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;  // not necessarily aligned
};

struct SafetensorsHeader {
  std::vector<TensorEntry> entries;  // by offset
  std::map<std::string, std::size_t, std::less<>> by_name;
  std::map<std::string, std::string> metadata;
};

namespace detail {

inline constexpr std::uint64_t max_safetensors_header = 100'000'000;  // the limit of the reference implementation
inline constexpr std::string_view metadata_key = "__metadata__";

// elements · bytes per element; nothing if that overflows.
inline std::optional<std::uint64_t> byte_size(std::span<const std::int64_t> shape, Dtype dtype) {
  std::uint64_t size = size_of(dtype);
  for (const std::int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    const auto factor = static_cast<std::uint64_t>(extent);
    if (factor != 0 && size > std::numeric_limits<std::uint64_t>::max() / factor) return std::nullopt;
    size *= factor;
  }
  return size;
}

// What the header says of one tensor before anything is checked.
struct TensorClaim {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<std::int64_t> shape;
  std::vector<std::uint64_t> offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Receives nlohmann::json's parse events. Whatever is out of place throws at once, so nesting never
// gets deeper than the four levels of the format.
class HeaderEvents {
 public:
  HeaderEvents(std::string_view source, std::map<std::string, std::string>& metadata)
      : source_(source), metadata_(metadata) {}

  std::vector<TensorClaim> claims;

  bool start_object(std::size_t) {
    switch (place_) {
      case Place::start:
        return enter(Place::tensors);
      case Place::tensor_value:
        return enter(Place::tensor);
      case Place::metadata_value:
        return enter(Place::metadata);
      default:
        unexpected("an object");
    }
  }
  bool key(std::string& text) {
    if (place_ == Place::tensors) {
      if (!names_.insert(text).second) fail("distinct tensor names", "'" + printable(text) + "' twice");
      if (text == metadata_key) return enter(Place::metadata_value);
      claims.emplace_back().name = text;
      return enter(Place::tensor_value);
    }
    if (place_ == Place::metadata) {
      metadata_name_ = text;
      if (metadata_.contains(text)) fail("distinct metadata names", "'" + printable(text) + "' twice");
      return enter(Place::metadata_text);
    }
    TensorClaim& claim = claims.back();  // Place::tensor
    if (text == "dtype") return enter_once(text, claim.has_dtype, Place::dtype);
    if (text == "shape") return enter_once(text, claim.has_shape, Place::shape_value);
    if (text == "data_offsets") return enter_once(text, claim.has_offsets, Place::offsets_value);
    fail(of("dtype, shape and data_offsets"), "'" + printable(text) + "'");
  }
  bool end_object() {
    if (place_ != Place::tensor) return enter(place_ == Place::metadata ? Place::tensors : Place::start);
    const TensorClaim& claim = claims.back();
    if (!claim.has_dtype || !claim.has_shape || !claim.has_offsets)
      fail(of("dtype, shape and data_offsets"), !claim.has_dtype   ? "no dtype"
                                                : !claim.has_shape ? "no shape"
                                                                   : "no offsets");
    return enter(Place::tensors);
  }
  bool start_array(std::size_t) {
    if (place_ == Place::shape_value) return enter(Place::shape);
    if (place_ == Place::offsets_value) return enter(Place::offsets);
    unexpected("an array");
  }
  bool end_array() {
    if (place_ == Place::offsets && claims.back().offsets.size() != 2)
      fail(of("two data_offsets"), std::to_string(claims.back().offsets.size()));
    return enter(Place::tensor);
  }
  bool string(std::string& text) {
    if (place_ == Place::metadata_text) return metadata_[metadata_name_] = text, enter(Place::metadata);
    if (place_ != Place::dtype) unexpected("a string");
    if (!parse(text, claims.back().dtype)) fail(of("a known dtype"), "'" + printable(text) + "'");
    return enter(Place::tensor);
  }
  bool number_unsigned(std::uint64_t value) {
    if (place_ == Place::shape) {
      if (!std::in_range<std::int64_t>(value)) fail(of("sizes below 2^63"), std::to_string(value));
      return claims.back().shape.push_back(static_cast<std::int64_t>(value)), true;
    }
    if (place_ != Place::offsets) unexpected("a number");
    return claims.back().offsets.push_back(value), true;
  }
  bool number_integer(std::int64_t value) { unexpected(std::to_string(value)); }
  bool number_float(double, const std::string& text) { unexpected(printable(text)); }
  bool boolean(bool value) { unexpected(value ? "true" : "false"); }
  bool null() { unexpected("null"); }
  bool binary(std::vector<std::uint8_t>&) { unexpected("binary data"); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& error) {
    const std::string_view message = error.what();  // "[json.exception...] parse error at line ..."
    fail("valid JSON", printable(message.substr(message.find(' ') + 1)));
  }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw Error("SafetensorsFile", std::string(source_) + ": header", expected, got);
  }

 private:
  enum class Place {  // what has just been read, or is about to be
    start,
    tensors,
    metadata_value,
    metadata,
    metadata_text,
    tensor_value,
    tensor,
    dtype,
    shape_value,
    shape,
    offsets_value,
    offsets,
  };

  bool enter(Place place) {
    place_ = place;
    return true;
  }
  bool enter_once(std::string_view field, bool& seen, Place place) {
    if (std::exchange(seen, true)) fail(of(std::string(field) + " once"), "twice");
    return enter(place);
  }
  std::string of(std::string_view what) const {
    return std::string(what) + " of tensor '" + printable(claims.back().name) + "'";
  }
  [[noreturn]] void unexpected(std::string_view got) const {
    switch (place_) {
      case Place::metadata_value:
        fail("an object as __metadata__", got);
      case Place::metadata_text:
        fail("strings in __metadata__", got);
      case Place::tensor_value:
        fail(of("an object as description"), got);
      case Place::dtype:
        fail(of("a string as dtype"), got);
      case Place::shape_value:
        fail(of("an array as shape"), got);
      case Place::shape:
        fail(of("sizes from 0 to 2^63 in the shape"), got);
      case Place::offsets_value:
        fail(of("an array as data_offsets"), got);
      case Place::offsets:
        fail(of("two byte offsets as data_offsets"), got);
      default:
        fail("an object", got);
    }
  }

  std::string_view source_;
  std::map<std::string, std::string>& metadata_;
  std::set<std::string> names_;
  std::string metadata_name_;
  Place place_ = Place::start;
};

// The data of all tensors, in order of offset, must tile [0, size) exactly.
inline void check_layout(const HeaderEvents& events, std::span<TensorClaim> claims, std::uint64_t size) {
  std::stable_sort(claims.begin(), claims.end(), [](const auto& a, const auto& b) { return a.offsets < b.offsets; });
  std::uint64_t end_of_previous = 0;
  for (const TensorClaim& claim : claims) {
    const std::uint64_t begin = claim.offsets[0], end = claim.offsets[1];
    const std::string name = "tensor '" + printable(claim.name) + "'";
    const std::string range = std::string("[").append(std::to_string(begin)).append(", ") + std::to_string(end) + ")";
    if (begin > end || end > size) events.fail(name + " inside the " + std::to_string(size) + " bytes of data", range);
    const auto expected = byte_size(claim.shape, claim.dtype);
    if (!expected) events.fail(name + " of a size below 2^64 bytes", "shape " + describe_shape(claim.shape));
    if (*expected != end - begin)
      events.fail(name + " of " + std::to_string(*expected) + " bytes (" + name_of(claim.dtype) + " " +
                      describe_shape(claim.shape) + ")",
                  std::to_string(end - begin) + " bytes");
    if (begin != end_of_previous)
      events.fail(name + " from byte " + std::to_string(end_of_previous) + ", without overlap or hole", range);
    end_of_previous = end;
  }
  if (end_of_previous != size)
    events.fail(std::to_string(end_of_previous) + " bytes of data", std::to_string(size) + " bytes");
}

inline std::string quoted(std::string_view operation, const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(operation, "name or metadata", "UTF-8 text", "'" + printable(text) + "'");
  }
}

// The header for these entries, whose data will lie in the given order; a multiple of 8 bytes long.
inline std::string compose_header(std::string_view operation, std::span<const TensorEntry> entries,
                                  std::span<const std::size_t> order,
                                  const std::map<std::string, std::string>& metadata) {
  std::string header = "{";
  const auto separate = [&] { header += header.size() > 1 ? "," : ""; };
  if (!metadata.empty()) {
    header += quoted(operation, std::string(metadata_key)) + ":{";
    const char* comma = "";
    for (const auto& [name, text] : metadata) {
      header += comma + quoted(operation, name) + ":" + quoted(operation, text);
      comma = ",";
    }
    header += "}";
  }
  std::set<std::string_view> names = {metadata_key};
  std::uint64_t offset = 0;
  for (const std::size_t i : order) {
    const TensorEntry& entry = entries[i];
    require(names.insert(entry.name).second, operation, "tensor name", "a name not used yet", entry.name);
    const auto size = byte_size(entry.shape, entry.dtype);
    require(size.has_value() && *size == entry.data.size(), operation, entry.name,
            std::string(name_of(entry.dtype)) + " data of shape " + describe_shape(entry.shape),
            std::to_string(entry.data.size()) + " bytes");
    separate();
    header += quoted(operation, entry.name) + ":{\"dtype\":\"" + name_of(entry.dtype) + "\",\"shape\":[";
    const char* comma = "";
    for (const std::int64_t extent : entry.shape) {
      header.append(comma).append(std::to_string(extent));
      comma = ",";
    }
    header += "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(offset + *size) + "]}";
    offset += *size;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  require(header.size() <= max_safetensors_header, operation, "header", "at most 100000000 bytes", header.size());
  return header;
}

}  // namespace detail

// Checks a whole file in memory; the entries point into `bytes`. `source` names it in messages.
inline SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, std::string_view source) {
  constexpr std::string_view operation = "SafetensorsFile";
  std::uint64_t length = 0;
  require(bytes.size() >= sizeof length, operation, std::string(source) + ": file", "at least 8 bytes", bytes.size());
  std::memcpy(&length, bytes.data(), sizeof length);
  const std::uint64_t room = std::min<std::uint64_t>(bytes.size() - sizeof length, detail::max_safetensors_header);
  require(length > 0 && length <= room, operation, std::string(source) + ": header length",
          "1 to " + std::to_string(room), length);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof length,
                              static_cast<std::size_t>(length));
  const auto data = bytes.subspan(sizeof length + static_cast<std::size_t>(length));

  SafetensorsHeader header;
  detail::HeaderEvents events(source, header.metadata);
  if (text.front() != '{') events.fail("an object", "'" + detail::printable(text.substr(0, 8)) + "'");
  // nlohmann::json takes a NUL for the end of the text.
  if (text.find('\0') != text.npos) events.fail("valid JSON", "a NUL byte");
  nlohmann::json::sax_parse(text.begin(), text.end(), &events);

  detail::check_layout(events, events.claims, data.size());
  for (detail::TensorClaim& claim : events.claims) {
    const auto begin = static_cast<std::size_t>(claim.offsets[0]), end = static_cast<std::size_t>(claim.offsets[1]);
    header.by_name.emplace(claim.name, header.entries.size());
    header.entries.push_back(
        {std::move(claim.name), claim.dtype, std::move(claim.shape), data.subspan(begin, end - begin)});
  }
  return header;
}

}  // namespace rbar
