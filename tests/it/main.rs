//! Black-box tests: the release binary against real neighbours. One test binary, so that it links once.
#![allow(
    clippy::disallowed_methods,
    reason = "tests are no supervisor: they may spawn and wait as they like"
)]

mod asides;
mod attach;
mod browser;
mod callbacks;
mod canaries;
mod chaos;
mod commands;
mod exec;
mod gateway;
mod hub;
mod image;
mod interface;
mod life;
mod links;
mod live;
mod memory;
mod mistakes;
mod outage;
mod remote;
mod script;
mod services;
mod skill;
mod stop;
mod supply;
mod support;
mod takeover;
mod tool;
mod worker;
