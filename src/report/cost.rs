//! What the bucket costs: an estimate from R2's public prices, without its free allowance.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// US dollars for a million class A operations (PUT, LIST), R2 standard storage.
const CLASS_A_PER_MILLION: f64 = 4.50;
/// US dollars for a gigabyte kept for a month, R2 standard storage.
const GB_MONTH: f64 = 0.015;

/// Writes of the present calendar month (UTC) and what they cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// `2026-11`; the figures below are of this month only.
    pub month: String,
    pub commits: u64,
    pub written_bytes: u64,
    pub write_operations: u64,
    pub write_operations_usd: f64,
    /// What the store holds now, were it kept for a whole month; 0 until it has been counted.
    pub storage_usd: f64,
    /// The two together. R2's monthly free allowance (10 GB, a million writes) is not taken off.
    pub estimated_usd: f64,
}

impl Costs {
    /// One more commit.
    pub(super) fn spend(self, bytes: u64, operations: u64, now: Timestamp) -> Costs {
        self.add(1, bytes, operations, now)
    }

    /// With what an earlier boot of the same month had spent.
    pub(super) fn carry(self, earlier: &Costs, now: Timestamp) -> Costs {
        if earlier.month == month(now) {
            self.add(earlier.commits, earlier.written_bytes, earlier.write_operations, now)
        } else {
            self
        }
    }

    /// Which of two accounts of the same instance goes further.
    pub(super) fn by_recency(&self, other: &Costs) -> std::cmp::Ordering {
        (&self.month, self.write_operations).cmp(&(&other.month, other.write_operations))
    }

    fn add(self, commits: u64, bytes: u64, operations: u64, now: Timestamp) -> Costs {
        let this = month(now);
        let before = if self.month == this { self } else { Costs::default() };
        Costs {
            month: this,
            commits: before.commits.saturating_add(commits),
            written_bytes: before.written_bytes.saturating_add(bytes),
            write_operations: before.write_operations.saturating_add(operations),
            ..Costs::default()
        }
    }

    /// With the money worked out, for a store of so many bytes.
    pub(super) fn at(&self, now: Timestamp, stored: Option<u64>) -> Costs {
        let mut costs = if self.month == month(now) {
            self.clone()
        } else {
            Costs {
                month: month(now),
                ..Costs::default()
            }
        };
        costs.write_operations_usd = costs.write_operations as f64 / 1e6 * CLASS_A_PER_MILLION;
        costs.storage_usd = stored.unwrap_or(0) as f64 / 1e9 * GB_MONTH;
        costs.estimated_usd = costs.write_operations_usd + costs.storage_usd;
        costs
    }
}

fn month(now: Timestamp) -> String {
    now.strftime("%Y-%m").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_month_is_priced_and_the_next_begins_at_zero() {
        let november = time("2026-11-30T23:59:59Z");
        let costs = Costs::default()
            .spend(10, 500_000, november)
            .spend(5, 500_000, november);
        let shown = costs.at(november, Some(2_000_000_000));
        assert_eq!((shown.commits, shown.written_bytes), (2, 15));
        assert!((shown.write_operations_usd - 4.5).abs() < 1e-9);
        assert!((shown.storage_usd - 0.03).abs() < 1e-9);
        assert!((shown.estimated_usd - 4.53).abs() < 1e-9);

        let december = time("2026-12-01T00:00:00Z");
        assert_eq!(costs.at(december, None).write_operations, 0);
        assert_eq!(costs.spend(1, 1, december).commits, 1);
    }

    #[test]
    fn an_earlier_boot_counts_only_within_its_month() {
        let now = time("2026-11-23T00:00:00Z");
        let earlier = Costs::default().spend(7, 3, now);
        let carried = Costs::default().spend(1, 1, now).carry(&earlier, now);
        assert_eq!(
            (carried.commits, carried.written_bytes, carried.write_operations),
            (2, 8, 4)
        );
        let later = time("2026-12-02T00:00:00Z");
        assert_eq!(Costs::default().carry(&earlier, later), Costs::default());
    }
}
