//! Sparse maps: checked, whatever header they came from.

use super::pax::unsigned;
use super::{Reason, Segment};

/// Checks that segments ascend, do not overlap, lie inside the file, and that exactly
/// `data_size` bytes of data belong to them. Empty segments are dropped.
pub(super) fn check(
    segments: Vec<Segment>,
    size: u64,
    data_size: u64,
) -> Result<Box<[Segment]>, Reason> {
    let (mut end, mut total) = (0u64, 0u64);
    for segment in &segments {
        if segment.offset < end {
            return Err(Reason::Sparse);
        }
        end = segment
            .offset
            .checked_add(segment.len)
            .filter(|&end| end <= size)
            .ok_or(Reason::Sparse)?;
        total = total.checked_add(segment.len).ok_or(Reason::Sparse)?;
    }
    if total != data_size {
        return Err(Reason::Sparse);
    }
    Ok(segments
        .into_iter()
        .filter(|segment| segment.len > 0)
        .collect())
}

/// The map of PAX format 1.0, which stands in blocks before the data: decimal numbers, each with a
/// newline: how many segments, then offset and length of each.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    /// Digits of a number whose newline has not come yet.
    digits: Vec<u8>,
    /// How many numbers are still to come; unknown before the first.
    left: Option<u64>,
    offset: Option<u64>,
    segments: Vec<Segment>,
}

impl MapReader {
    /// Takes one block; gives the segments when the map is whole.
    pub(super) fn block(
        &mut self,
        block: &[u8],
        most_segments: usize,
    ) -> Result<Option<Vec<Segment>>, Reason> {
        for &byte in block {
            if byte != b'\n' {
                // No number has more digits than u64 takes.
                if self.digits.len() >= 20 {
                    return Err(Reason::Sparse);
                }
                self.digits.push(byte);
                continue;
            }
            if self.digits.is_empty() {
                return Err(Reason::Sparse);
            }
            let number = unsigned(&self.digits).ok_or(Reason::Sparse)?;
            self.digits.clear();
            let left = match self.left {
                None => {
                    if usize::try_from(number).map_or(true, |count| count > most_segments) {
                        return Err(Reason::TooLarge {
                            what: "sparse map",
                            limit: most_segments,
                        });
                    }
                    number.checked_mul(2).ok_or(Reason::Sparse)?
                }
                Some(left) => {
                    match self.offset.take() {
                        None => self.offset = Some(number),
                        Some(offset) => self.segments.push(Segment {
                            offset,
                            len: number,
                        }),
                    }
                    left.saturating_sub(1)
                }
            };
            if left == 0 {
                return Ok(Some(std::mem::take(&mut self.segments)));
            }
            self.left = Some(left);
        }
        Ok(None)
    }
}
