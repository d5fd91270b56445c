//! CRC-32C (Castagnoli), reflected, as the kernel's `crc32c()`: no final inversion.

/// Continues `crc` over `bytes`. One superblock is 500 bytes: bit by bit is fast enough.
pub(super) fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn check_value_of_the_catalogue() {
        // RFC 3720, B.4: 32 bytes of zeros give 0x8a9136aa.
        assert_eq!(!super::crc32c(!0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(!super::crc32c(!0, b"123456789"), 0xe306_9283);
    }
}
