#include "../model_of.hpp"

#include "rbar/model/cort.hpp"

static const bool registered = rbar_lm::register_family<rbar::CoRTModel<float>>("coherence-routed transformer");
