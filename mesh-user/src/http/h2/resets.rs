//! Counts streams that a client opens and takes back at once (CVE-2023-44487), as Envoy's premature resets do: each costs
//! a decision and a stream to the application, and none counts against the number of open streams.

/// The counts of one connection.
#[derive(Debug)]
pub(super) struct Resets {
    budget: u32,
    ended: u64,
    early: u64,
}

impl Resets {
    pub(super) fn new(budget: u32) -> Self {
        Self { budget, ended: 0, early: 0 }
    }

    /// Takes note of a stream's end. True where the client has to go: past the budget, half or more were taken back.
    pub(super) fn exceeded_by(&mut self, early: bool) -> bool {
        self.ended += 1;
        self.early += u64::from(early);
        self.ended > u64::from(self.budget) && self.early * 2 >= self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_takes_back_half_of_many_has_to_go() {
        for (early_of_ten, streams, expected) in
            [(10, 10, false), (10, 11, true), (5, 40, true), (4, 1000, false)]
        {
            let mut resets = Resets::new(10);
            let exceeded = (0..streams).any(|at| resets.exceeded_by(at % 10 >= 10 - early_of_ten));
            assert_eq!(exceeded, expected, "{early_of_ten} of ten, {streams} streams");
        }
    }
}
