//! Faults at each step of the way.
