//! Supervision of real processes. A binary of its own: the reaper takes the status of every child of its process, so
//! nothing here may use `std::process`.

mod bench;
mod health;
mod life;
mod logs;
mod tree;
