#include "../model_of.hpp"

#include "rbar/model/cgt.hpp"

static const bool registered =
    rbar_lm::register_family<rbar::CoherenceGatedTransformer<float>>("coherence-gated transformer, lanes by energy");
