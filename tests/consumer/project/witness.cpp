#include "rbar/io/witness_file.hpp"

rbar::ChainHead head_of(const rbar::SequenceTrace& trace) {
  rbar::ChainHead head;
  rbar::seal(trace, head);
  return head;
}
