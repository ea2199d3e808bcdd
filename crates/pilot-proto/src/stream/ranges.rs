//! A set of byte ranges, sorted, disjoint and never touching each other.

/// Half-open ranges of stream offsets. Small: one per hole.
#[derive(Debug, Default)]
pub(super) struct RangeSet {
    ranges: Vec<(u64, u64)>,
}

impl RangeSet {
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(super) fn as_slice(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Index of the first range that ends at or behind `offset`.
    fn first_ending_from(&self, offset: u64) -> usize {
        self.ranges.partition_point(|r| r.1 < offset)
    }

    /// Whether adding `start..end` would create a range that touches no other.
    pub(super) fn would_add(&self, start: u64, end: u64) -> bool {
        self.ranges.get(self.first_ending_from(start)).is_none_or(|r| r.0 > end)
    }

    /// Adds `start..end` and calls `fresh` for each part that was not in the set.
    pub(super) fn insert(&mut self, start: u64, end: u64, mut fresh: impl FnMut(u64, u64)) {
        if start >= end {
            return;
        }
        let from = self.first_ending_from(start);
        let mut to = from;
        let mut merged = (start, end);
        let mut at = start;
        while let Some(&(a, b)) = self.ranges.get(to).filter(|r| r.0 <= end) {
            if at < a {
                fresh(at, a);
            }
            at = at.max(b);
            merged = (merged.0.min(a), merged.1.max(b));
            to += 1;
        }
        if at < end {
            fresh(at, end);
        }
        if to == from + 1 {
            self.ranges[from] = merged;
        } else {
            self.ranges.splice(from..to, [merged]);
        }
    }

    /// Forgets everything below `offset`.
    pub(super) fn remove_below(&mut self, offset: u64) {
        let gone = self.ranges.partition_point(|r| r.1 <= offset);
        if gone > 0 {
            self.ranges.drain(..gone);
        }
        if let Some(first) = self.ranges.first_mut() {
            first.0 = first.0.max(offset);
        }
    }

    pub(super) fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inserting_reports_only_what_is_new_and_merges_neighbours() {
        let mut set = RangeSet::default();
        let mut add = |a, b| {
            let mut fresh = Vec::new();
            set.insert(a, b, |x, y| fresh.push((x, y)));
            (fresh, set.as_slice().to_vec())
        };
        assert_eq!(add(10, 20), (vec![(10, 20)], vec![(10, 20)]));
        assert_eq!(add(30, 40), (vec![(30, 40)], vec![(10, 20), (30, 40)]));
        assert_eq!(add(12, 18), (vec![], vec![(10, 20), (30, 40)]));
        assert_eq!(add(20, 25), (vec![(20, 25)], vec![(10, 25), (30, 40)]));
        assert_eq!(add(5, 50), (vec![(5, 10), (25, 30), (40, 50)], vec![(5, 50)]));
        set.remove_below(20);
        assert_eq!(set.as_slice(), [(20, 50)]);
        assert!(set.would_add(5, 10) && !set.would_add(5, 20) && !set.would_add(50, 60) && set.would_add(51, 60));
        set.remove_below(50);
        assert!(set.is_empty());
    }
}
