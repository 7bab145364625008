//! The driver test list.
#![no_std]
