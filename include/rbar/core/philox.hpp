// Many blocks of Philox (random.hpp) at once, for whoever needs a random number for every element of a tensor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rbar {

inline constexpr std::size_t philox_batch = 32;  // blocks computed together, so that the compiler uses vectors

// words[w][i] is word w of block first + i of a stream: the numbers of philox4x32, a block a lane.
inline void philox_blocks(std::uint64_t seed, std::uint64_t stream, std::uint64_t first,
                          std::uint32_t (&words)[4][philox_batch]) {
  for (std::size_t i = 0; i < philox_batch; ++i) {
    words[0][i] = static_cast<std::uint32_t>(first + i);
    words[1][i] = static_cast<std::uint32_t>((first + i) >> 32);
    words[2][i] = static_cast<std::uint32_t>(stream);
    words[3][i] = static_cast<std::uint32_t>(stream >> 32);
  }
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (std::size_t i = 0; i < philox_batch; ++i) {
      const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * words[0][i];
      const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * words[2][i];
      words[0][i] = static_cast<std::uint32_t>(product1 >> 32) ^ words[1][i] ^ key0;
      words[1][i] = static_cast<std::uint32_t>(product1);
      words[2][i] = static_cast<std::uint32_t>(product0 >> 32) ^ words[3][i] ^ key1;
      words[3][i] = static_cast<std::uint32_t>(product0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

}  // namespace rbar
