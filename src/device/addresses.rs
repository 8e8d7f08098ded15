//! The map of addresses: where llama.cpp believes the paged tensors to be.

use crate::pager::TensorId;

/// A tensor's place in the map of addresses: where llama.cpp believes it to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// First address.
    pub start: usize,
    /// Address behind the last byte, padding included.
    pub end: usize,
    /// The tensor.
    pub tensor: TensorId,
}

/// Finds the paged tensor at an address.
#[derive(Debug, Default)]
pub struct AddressMap {
    // Ordered by address, disjoint.
    ranges: Vec<AddressRange>,
}

impl AddressMap {
    /// Adds the tensors of a buffer. Those without bytes own no address: one at the end
    /// of its buffer would hide whatever begins there.
    pub fn insert(&mut self, ranges: impl IntoIterator<Item = AddressRange>) {
        let owners = ranges.into_iter().filter(|range| range.start < range.end);
        self.ranges.extend(owners);
        self.ranges.sort_unstable_by_key(|range| range.start);
    }

    /// Removes tensors.
    pub fn remove(&mut self, tensors: &[TensorId]) {
        self.ranges.retain(|range| !tensors.contains(&range.tensor));
    }

    /// The tensor at `address`, and the address's offset in it in bytes.
    pub fn find(&self, address: usize) -> Option<(TensorId, usize)> {
        let (first, last) = (self.ranges.first()?, self.ranges.last()?);
        if address < first.start || address >= last.end {
            return None;
        }
        let index = self.ranges.partition_point(|range| range.start <= address);
        let range = &self.ranges[index.checked_sub(1)?];
        (address < range.end).then(|| (range.tensor, address - range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn addresses_are_found_as_a_scan_finds_them(
            lengths in prop::collection::vec((0usize..20, 0usize..5), 1..20),
            address in 0usize..500,
        ) {
            let mut start = 50;
            let mut ranges = Vec::new();
            for (index, &(length, gap)) in lengths.iter().enumerate() {
                let tensor = TensorId(u32::try_from(index).unwrap());
                ranges.push(AddressRange { start, end: start + length, tensor });
                start += length + gap;
            }
            let mut map = AddressMap::default();
            map.insert(ranges.clone());
            let scanned = ranges
                .iter()
                .find(|range| (range.start..range.end).contains(&address))
                .map(|range| (range.tensor, address - range.start));
            prop_assert_eq!(map.find(address), scanned);
        }
    }
}
