// A chain of witnesses as an append-only file:
//   "rbar witnesses 1\n", then for every witness
//   length of its encoding | complement of the length (8 bytes each, least first) | encoding | hash (32 bytes)
// An append is one write and one flush to the disk. Killed in between, it leaves a torn tail: the first bytes of a
// witness, which the file's end cuts off. The complement tells it from a length that was changed by accident; who
// changes both makes the rest of the file look torn, which only a kept ChainHead can tell. Reading keeps what was
// written before a torn tail, appending moves the tail to the end of <path>.torn first: no byte is lost. Link
// rbar::witness; POSIX only.
#pragma once

#include "rbar/io/file.hpp"
#include "rbar/io/witness_chain.hpp"

#if RBAR_POSIX_FILES
#include <sys/file.h>

namespace rbar {

namespace detail {

struct WitnessFileState {
  ChainHead head;  // of the intact witnesses
  std::size_t intact_bytes = 0, torn_bytes = 0;
  std::optional<ChainFault> fault;  // what follows the intact witnesses is broken, and not just torn
};

inline constexpr std::string_view witness_file_label = "rbar witnesses 1\n";

// Takes the next witness off the front of `bytes`. False if they end before it does. Errors: broken bytes.
inline bool take_witness(std::span<const std::byte>& bytes, Witness& witness) {
  if (bytes.size() < 16) return false;
  std::span<const std::byte> rest = bytes;
  const WitnessReader read{rest};
  const std::uint64_t length = read.word("length"), complement = read.word("complement");
  require(length == ~complement, "witness file", "complement of the length", ~length, complement);
  if (rest.size() < sizeof(WitnessHash) || rest.size() - sizeof(WitnessHash) < length) return false;
  witness = decode_witness(read.bytes(static_cast<std::size_t>(length), "encoding"));
  read("hash", witness.hash);
  bytes = rest;
  return true;
}

// Calls body(witness) for one intact witness after the other, in order.
template <class Body>
WitnessFileState scan_witnesses(const std::filesystem::path& path, std::span<const std::byte> file, Body&& body) {
  const auto label = std::as_bytes(std::span(witness_file_label));
  const std::size_t present = std::min(file.size(), label.size());
  require(std::ranges::equal(file.first(present), label.first(present)), "witness file", path.string(),
          "a file of witnesses", "other contents");

  WitnessFileState state;
  state.torn_bytes = present;
  if (present < label.size()) return state;
  state.intact_bytes = label.size();
  std::vector<std::byte> scratch;
  for (Witness witness;;) {
    std::span<const std::byte> rest = file.subspan(state.intact_bytes);
    std::string reason;
    try {
      if (!take_witness(rest, witness)) {
        state.torn_bytes = rest.size();
        return state;
      }
      reason = advance(state.head, witness, scratch);
    } catch (const Error& error) {
      reason = error.what();
    }
    if (!reason.empty()) {
      state.torn_bytes = 0;
      state.fault = ChainFault{state.head.count, std::move(reason)};
      return state;
    }
    state.intact_bytes = file.size() - rest.size();
    body(std::as_const(witness));
  }
}

inline void require_intact(std::string_view operation, const std::filesystem::path& path,
                           const WitnessFileState& state) {
  if (state.fault)
    throw Error(operation, path.string() + ": witness " + std::to_string(state.fault->witness), "an intact one",
                state.fault->reason);
}

inline std::optional<ChainFault> find_fault_in_bytes(const std::filesystem::path& path, std::span<const std::byte> file,
                                                     const std::optional<ChainHead>& kept) {
  WitnessFileState state = scan_witnesses(path, file, [](const Witness&) {});
  if (!state.fault && state.torn_bytes > 0)
    state.fault = ChainFault{state.head.count, "the file ends in " + std::to_string(state.torn_bytes) +
                                                   " bytes of a witness that was not written whole"};
  return state.fault ? state.fault : compare_heads(state.head, kept);
}

}  // namespace detail

// Nothing, if the file holds whole witnesses only, all as they were sealed, and ends at `kept` (where given). Errors:
// a file that cannot be read, or is none of witnesses.
inline std::optional<ChainFault> find_fault(const std::filesystem::path& path,
                                            const std::optional<ChainHead>& kept = {}) {
  return detail::find_fault_in_bytes(path, MappedFile(path).bytes(), kept);
}

// The chain of a file, without a torn tail. Errors: a broken chain, and as find_fault.
inline std::vector<Witness> load_witnesses(const std::filesystem::path& path) {
  std::vector<Witness> chain;
  detail::require_intact("load_witnesses", path,
                         detail::scan_witnesses(path, MappedFile(path).bytes(),
                                                [&](const Witness& witness) { chain.push_back(witness); }));
  return chain;
}

// Appends to the chain of a file, which is created where there is none. One object at a time holds a file.
// Errors: a broken chain, one that does not hold the witnesses up to `kept` (where given), a file that another holds,
// is none of witnesses or cannot be written.
class WitnessFile {
 public:
  explicit WitnessFile(const std::filesystem::path& path, const std::optional<ChainHead>& kept = {})
      : path_(path), file_(path, O_RDWR | O_CREAT | O_APPEND | O_NONBLOCK, 0666) {
    constexpr std::string_view expected = "a file that can be appended to";
    if (!file_) detail::throw_file_error("WitnessFile", path, expected, errno);
    if (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0)
      detail::throw_file_error("WitnessFile", path, "a file that nobody else appends to", errno);
    const MappedFile present(path);
    ChainHead reached;  // as far as `kept`
    auto state = detail::scan_witnesses(path, present.bytes(), [&](const Witness& witness) {
      if (kept && reached.count < kept->count) reached = {witness.sequence_number + 1, witness.hash};
    });
    if (!state.fault) state.fault = detail::compare_heads(reached, kept);
    detail::require_intact("WitnessFile", path, state);
    head_ = state.head;
    size_ = state.intact_bytes;
    cut_bytes_ = state.torn_bytes;
    if (cut_bytes_ > 0) {
      save_torn(present.bytes().last(cut_bytes_));
      if (::ftruncate(file_.get(), static_cast<off_t>(size_)) != 0)
        detail::throw_file_error("WitnessFile", path, expected, errno);
    }
    if (size_ == 0) {
      write(std::as_bytes(std::span(detail::witness_file_label)));
      flush_folder();
    }
  }

  // When this returns, the witness is on the disk. On an Error the file and head() are as they were.
  Witness append(SequenceTrace trace) {
    ChainHead head = head_;
    Witness witness = seal(std::move(trace), head);
    std::vector<std::byte> encoding, bytes;
    encode_witness(witness, encoding);
    const detail::WitnessWriter put{bytes};
    put.word(encoding.size());
    put.word(~std::uint64_t{encoding.size()});
    put.bytes(encoding);
    put.bytes(witness.hash);
    write(bytes);
    head_ = head;
    return witness;
  }

  const ChainHead& head() const { return head_; }
  std::size_t cut_bytes() const { return cut_bytes_; }  // of a torn tail, when the file was opened; in <path>.torn now

 private:
  // A file's name must survive a power cut too.
  void flush_folder() const {
    const detail::FileDescriptor folder(path_.has_parent_path() ? path_.parent_path() : ".", O_RDONLY);
    if (folder) ::fsync(folder.get());
  }
  // On the disk when this returns, after what was cut off before.
  void save_torn(std::span<const std::byte> bytes) const {
    std::filesystem::path path = path_;
    path += ".torn";
    const detail::FileDescriptor file(path, O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK, 0666);
    int failure = file ? detail::write_all(file.get(), bytes) : errno;
    if (failure == 0 && ::fsync(file.get()) != 0) failure = errno;
    if (failure != 0) detail::throw_file_error("WitnessFile", path, "a file that takes a torn tail", failure);
    flush_folder();
  }
  void write(std::span<const std::byte> bytes) {
    int failure = detail::write_all(file_.get(), bytes);
    if (failure == 0 && ::fsync(file_.get()) != 0) failure = errno;
    if (failure != 0) {
      // Should this fail too, what remains is a torn tail, and the next append would make it a broken chain.
      if (::ftruncate(file_.get(), static_cast<off_t>(size_)) != 0) file_.close();
      detail::throw_file_error("WitnessFile", path_, "a complete write", failure);
    }
    size_ += bytes.size();
  }

  std::filesystem::path path_;
  detail::FileDescriptor file_;
  ChainHead head_;
  std::size_t size_ = 0, cut_bytes_ = 0;
};

}  // namespace rbar
#endif
