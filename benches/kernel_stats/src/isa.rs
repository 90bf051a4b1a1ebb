//! Reads AMD's assembly, as RADV prints it: a label `BB7:` starts a block, a line that starts with a
//! tab is an instruction, and `;` starts its bytes.

use crate::blocks::{Block, Instruction};

/// Memory, and the other threads of a wave.
const MEMORY: [&str; 8] =
    ["buffer_", "global_", "flat_", "scratch_", "ds_", "image_", "s_load", "s_buffer_"];

/// What multiplies and adds, after `v_`, `v_pk_` or `v_dual_`.
const MULTIPLY_ADD: [&str; 7] = ["fma", "fmac", "mac_", "mad_", "dot", "wmma", "mfma"];

/// Returns the basic blocks of a kernel. A block ends at a label and after a branch.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = vec![Block::new("BB0")];
    for line in text.lines() {
        if let Some(label) = label(line) {
            blocks.push(Block::new(label));
            continue;
        }
        let Some(code) = line.strip_prefix('\t') else { continue };
        let code = code.split(';').next().unwrap_or_default();
        let Some(block) = blocks.last_mut() else { continue };
        // The two halves of a dual instruction count as two.
        let halves = code.split("::").filter_map(|half| half.split_whitespace().next());
        block.instructions.extend(halves.map(classify));
        if is_branch(code) {
            let name = format!("after {}", block.name.trim_start_matches("after "));
            blocks.push(Block::new(name));
        }
    }
    blocks
}

fn label(line: &str) -> Option<&str> {
    let label = line.strip_suffix(':')?;
    let digits = label.strip_prefix("BB")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(label)
}

fn is_branch(code: &str) -> bool {
    let code = code.trim_start();
    code.starts_with("s_branch") || code.starts_with("s_cbranch")
}

fn classify(name: &str) -> Instruction {
    if MEMORY.iter().any(|start| name.starts_with(start)) {
        return Instruction::Memory(name.to_owned());
    }
    let Some(operation) = name.strip_prefix("v_") else { return Instruction::Other };
    let operation = operation.strip_prefix("pk_").unwrap_or(operation);
    let operation = operation.strip_prefix("dual_").unwrap_or(operation);
    match MULTIPLY_ADD.iter().any(|start| operation.starts_with(start)) {
        true => Instruction::MultiplyAdd,
        false => Instruction::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::HotBlock;

    /// Lines of a product for navi21 and, with dual instructions, for navi31.
    const CODE: &str = "\
BB0:
\ts_load_dwordx4 s[8:11], s[0:1], null                        ; f4080200 fa000000
\tv_mul_u32_u24_e32 v1, 3, v0                                 ; 16020083
\ts_cbranch_scc1 BB36                                         ; bf85014a
\tv_mov_b32_e32 v1, 0                                         ; 7e020280
BB34:
\tds_read_b128 v[72:75], v68                                  ; dbfc0000 48000044
\tds_read_b128 v[76:79], v69                                  ; dbfc0000 4c000045
\ts_waitcnt lgkmcnt(0)                                        ; bf8cc07f
\tv_fmac_f32_e32 v3, v72, v76                                 ; 56069948
\tv_fma_f32 v4, v72, v77, v4                                  ; d54b0004 04129b48
\tv_pk_fma_f16 v5, v72, v77, v5                               ; cc0e4005 1c169b48
\tv_dual_fmac_f32 v2, v4, v5 :: v_dual_mov_b32 v3, v6         ; c8100b04 02020106
\ts_cbranch_scc0 BB34                                         ; bf84ffa5
BB35:
\ts_endpgm                                                    ; bf810000
";

    #[test]
    fn a_block_ends_at_a_label_and_after_a_branch() {
        let blocks = blocks(CODE);
        let names: Vec<_> = blocks.iter().filter(|block| !block.instructions.is_empty()).collect();
        let names: Vec<_> =
            names.iter().map(|block| (&*block.name, block.instructions.len())).collect();
        assert_eq!(names, [("BB0", 3), ("after BB0", 1), ("BB34", 9), ("BB35", 1)]);
    }

    #[test]
    fn the_hot_block_has_the_multiply_adds() {
        let hot = HotBlock::of(&blocks(CODE)).unwrap();
        assert_eq!((&*hot.name, hot.instructions, hot.multiply_adds), ("BB34", 9, 4));
        assert_eq!(hot.describe(), "9 instructions, 2 ds_read_b128");
    }

    #[test]
    fn integer_products_and_moves_are_no_multiply_adds() {
        for name in ["v_mul_u32_u24_e32", "v_mov_b32_e32", "s_mul_i32", "v_max_f32", "v_med3_f32"] {
            assert_eq!(classify(name), Instruction::Other, "{name}");
        }
        for name in ["v_fmaak_f32", "v_mac_f32_e32", "v_dot2_f32_f16", "v_wmma_f32_16x16x16_f16"] {
            assert_eq!(classify(name), Instruction::MultiplyAdd, "{name}");
        }
    }

    #[test]
    fn code_without_multiply_adds_has_no_hot_block() {
        for code in ["", "BB0:\n\ts_endpgm ; bf810000\n"] {
            assert_eq!(HotBlock::of(&blocks(code)), None, "{code:?}");
        }
    }
}
