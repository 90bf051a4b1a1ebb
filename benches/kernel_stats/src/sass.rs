//! Reads NVIDIA's assembly (SASS), as `nvdisasm -c` prints it: a label `.L_x_7:` starts a block, and
//! a line that starts with an address in a comment is an instruction, perhaps after a predicate.

use crate::blocks::{Block, Instruction};

/// Memory, and the other threads of a warp.
const MEMORY: [&str; 7] = ["LD", "ST", "SHFL", "RED", "ATOM", "REDUX", "UTMA"];

const MULTIPLY_ADD: [&str; 6] = ["FFMA", "FFMA2", "HFMA2", "DFMA", "HMMA", "HGMMA"];

const BRANCHES: [&str; 4] = ["BRA", "BRX", "EXIT", "RET"];

/// Returns the basic blocks of a kernel. A block ends at a label and after a branch.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = vec![Block::new("entry")];
    for line in text.lines().map(str::trim) {
        if let Some(label) = line.strip_suffix(':').filter(|label| label.starts_with(".L_")) {
            blocks.push(Block::new(label));
            continue;
        }
        let Some(opcode) = opcode(line) else { continue };
        let Some(block) = blocks.last_mut() else { continue };
        block.instructions.push(classify(opcode));
        if BRANCHES.contains(&base(opcode)) {
            let name = format!("after {}", block.name.trim_start_matches("after "));
            blocks.push(Block::new(name));
        }
    }
    blocks
}

/// Counts the instructions of a kernel, without the NOPs that pad it.
pub fn instructions(text: &str) -> usize {
    text.lines().filter_map(|line| opcode(line.trim())).filter(|&opcode| opcode != "NOP").count()
}

/// Returns the instruction's name: `LDG.E.128` of `/*0a50*/ @!P0 LDG.E.128 R4, desc[UR6][R2.64] ;`.
fn opcode(line: &str) -> Option<&str> {
    let (address, code) = line.strip_prefix("/*")?.split_once("*/")?;
    if address.is_empty() || !address.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut words = code.split_whitespace().map(|word| word.trim_start_matches('{'));
    let opcode = words.find(|word| !word.is_empty() && !word.starts_with('@'))?;
    let opcode = opcode.trim_end_matches(';');
    opcode.starts_with(|c: char| c.is_ascii_uppercase()).then_some(opcode)
}

fn base(opcode: &str) -> &str {
    opcode.split('.').next().unwrap_or_default()
}

fn classify(opcode: &str) -> Instruction {
    if MULTIPLY_ADD.contains(&base(opcode)) {
        Instruction::MultiplyAdd
    } else if MEMORY.iter().any(|start| opcode.starts_with(start)) {
        Instruction::Memory(opcode.to_owned())
    } else {
        Instruction::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::HotBlock;

    const CODE: &str = "\
\t.section\t.text.main_,\"ax\",@progbits
        .size           main_,(.L_x_52 - main_)
main_:
.text.main_:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0130*/              @!P0 BRA `(.L_x_0) ;
        /*0140*/                   CS2R R66, SRZ ;
.L_x_0:
        /*0150*/                   LDS.128 R4, [R2] ;
        /*0160*/               @P0 LDS.128 R8, [R3+0x10] ;
        /*0170*/                   FFMA R12, R4, R8, R12 ;
        /*0180*/                   FFMA R13, R5, R8.reuse, R13 ;
        /*0190*/                   IMAD.MOV.U32 R5, RZ, RZ, R4 ;
        /*01a0*/              @UP0 BRA `(.L_x_0) ;
        /*01b0*/                   EXIT ;
.L_x_1:
        /*01c0*/                   BRA `(.L_x_1);
        /*01d0*/                   NOP;
.L_x_52:
";

    #[test]
    fn a_block_ends_at_a_label_and_after_a_branch() {
        let lengths: Vec<_> = blocks(CODE)
            .iter()
            .filter(|block| !block.instructions.is_empty())
            .map(|block| (block.name.clone(), block.instructions.len()))
            .collect();
        let expected = [
            ("entry", 2),
            ("after entry", 1),
            (".L_x_0", 6),
            ("after .L_x_0", 1),
            (".L_x_1", 1),
            ("after .L_x_1", 1),
        ];
        assert_eq!(lengths, expected.map(|(name, length)| (name.to_owned(), length)));
        assert_eq!(instructions(CODE), 11);
    }

    #[test]
    fn the_hot_block_has_the_multiply_adds() {
        let hot = HotBlock::of(&blocks(CODE)).unwrap();
        assert_eq!((&*hot.name, hot.instructions, hot.multiply_adds), (".L_x_0", 6, 2));
        assert_eq!(hot.describe(), "6 instructions, 2 LDS.128");
    }

    #[test]
    fn lines_without_an_instruction_are_left_out() {
        for line in ["", "main_:", ".align 128", "/*0000*/", "/* 0x00000a00ff017b82 */", "// text"]
        {
            assert_eq!(opcode(line), None, "{line:?}");
        }
    }
}
