// Safetensors (https://github.com/huggingface/safetensors): eight bytes with the length of a JSON
// header, the header {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}},
// then the data of all tensors without holes. Files come from strangers: every claim of the header is
// checked against the file before a byte of data is touched, and each violation is an Error.
#pragma once

#include "rbar/core/tensor.hpp"
#include "rbar/io/dtype.hpp"
#include "rbar/io/file.hpp"
#include "rbar/io/safetensors_header.hpp"

#include <cstdint>
#include <filesystem>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rbar {

// A file opened for reading; tensors are views into the memory map, so keep the object alive.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path)
      : path_(path.string()), file_(path), header_(parse_safetensors(file_.bytes(), path_)) {}

  const std::string& path() const { return path_; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  // In the order of their data.
  std::span<const TensorEntry> entries() const { return header_.entries; }
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  const TensorEntry& at(std::string_view name) const {
    const TensorEntry* entry = find(name);
    if (entry == nullptr) throw Error("SafetensorsFile::at", path_, "a tensor named " + std::string(name), "none");
    return *entry;
  }

  // F64, F32, F16 and BF16 into float and double, integers and BOOL into integers that can hold them.
  template <class T>
  void copy_to(std::string_view name, std::span<T> out) const {
    const TensorEntry& entry = at(name);
    convert("SafetensorsFile::copy_to", path_ + ": " + entry.name, entry.dtype, entry.data, out);
  }

  template <class T, int Rank>
  Tensor<T, Rank> tensor(std::string_view name) const {
    const TensorEntry& entry = at(name);
    require(entry.shape.size() == static_cast<std::size_t>(Rank), "SafetensorsFile::tensor", path_ + ": " + entry.name,
            "rank " + std::to_string(Rank), "shape " + detail::describe_shape(entry.shape));
    Tensor<T, Rank> result;
    if constexpr (Rank > 0) {
      Shape<Rank> shape;
      std::copy(entry.shape.begin(), entry.shape.end(), shape.begin());
      ensure_shape(result, shape);
    }
    copy_to(name, elements(result));
    return result;
  }

 private:
  const TensorEntry* find(std::string_view name) const {
    const auto found = header_.by_name.find(name);
    return found == header_.by_name.end() ? nullptr : &header_.entries[found->second];
  }

  std::string path_;
  MappedFile file_;
  SafetensorsHeader header_;
};

// An entry for write_safetensors over memory that must outlive it.
template <class T>
TensorEntry tensor_entry(std::string name, std::span<const T> values, std::vector<std::int64_t> shape) {
  return {std::move(name), dtype_of<T>(), std::move(shape), std::as_bytes(values)};
}
template <class T, int Rank>
TensorEntry tensor_entry(std::string name, const Tensor<T, Rank>& tensor) {
  const auto shape = shape_of(tensor);
  return tensor_entry(std::move(name), std::span<const T>(elements(tensor)), {shape.begin(), shape.end()});
}

// Writes a file that the reader above, and every other, accepts. Wide types come first, so that all
// data is aligned to its own size. Atomic: see write_file_atomically.
// Errors: a name used twice or reserved, data that does not fit its shape, metadata or names that are
// no UTF-8, and everything the file system refuses.
inline void write_safetensors(const std::filesystem::path& path, std::span<const TensorEntry> entries,
                              const std::map<std::string, std::string>& metadata = {}) {
  std::vector<std::size_t> order(entries.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return size_of(entries[a].dtype) > size_of(entries[b].dtype); });
  const std::string header = detail::compose_header("write_safetensors", entries, order, metadata);
  const std::uint64_t length = header.size();
  static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

  std::vector<std::span<const std::byte>> pieces = {std::as_bytes(std::span(&length, 1)),
                                                    std::as_bytes(std::span(header))};
  for (const std::size_t i : order) pieces.push_back(entries[i].data);
  write_file_atomically(path, pieces);
}

}  // namespace rbar
