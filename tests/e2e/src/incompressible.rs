//! Bytes that no compression makes smaller, and that are the same in every run.

/// Returns `max_count` bytes, rounded down to a multiple of 8, of a generator with a fixed seed (xorshift64).
pub fn incompressible_bytes_rounded_down_to_8(max_count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(max_count);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..max_count / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
