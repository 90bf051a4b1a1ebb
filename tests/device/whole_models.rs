//! Whole models of every variant against the reference. The last file by name, so that it runs when
//! `kernels.rs` has compiled its kernels and Mesa's cache has them.

use crate::common::adapter;
use crate::kernels::assert_all_passed;
use gru_wgpu::check::Section;

#[test]
fn every_variant_agrees_with_the_reference_at_odd_sizes() {
    // y, h_n, dx, dh0, dreset_state and both weights for each of 12 variants; one bias for eight of
    // them, another for four.
    assert_all_passed(&Section::Models.run(adapter()).unwrap(), 7 * 12 + 8 + 4);
}
