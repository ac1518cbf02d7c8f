// Whether a layer may look at later tokens. Everything is causal unless `reference` is asked for.
#pragma once

namespace rbar {

enum class Causality {
  causal,     // changing token t never changes an output before t
  reference,  // what the published packages compute, leaks included: for parity tests only
};

}  // namespace rbar
