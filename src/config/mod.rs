//! The configuration: what the file says (`raw`), what is wrong with it (`problem`), how references and
//! defaults are resolved (`resolve`), and what the program runs on (`model`).

pub mod model;
pub mod problem;
mod raw;
