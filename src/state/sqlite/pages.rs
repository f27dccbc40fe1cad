//! A set of pages.

/// Page numbers, a bit each.
#[derive(Debug, Default)]
pub struct PageSet {
    words: Vec<u64>,
    /// No word before this one has a bit.
    low: usize,
}

impl PageSet {
    pub fn insert(&mut self, page: u32) {
        let word = page as usize / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (page % 64);
        self.low = self.low.min(word);
    }

    pub fn remove(&mut self, page: u32) {
        if let Some(word) = self.words.get_mut(page as usize / 64) {
            *word &= !(1 << (page % 64));
        }
    }

    pub fn len(&self) -> u32 {
        let words = self.words.get(self.low..).unwrap_or_default();
        words.iter().map(|word| word.count_ones()).sum()
    }

    pub fn contains(&self, page: u32) -> bool {
        self.words
            .get(page as usize / 64)
            .is_some_and(|word| word & 1 << (page % 64) != 0)
    }

    pub fn first(&mut self) -> Option<u32> {
        while *self.words.get(self.low)? == 0 {
            self.low += 1;
        }
        Some(self.low as u32 * 64 + self.words[self.low].trailing_zeros())
    }

    /// The first page from `from` on.
    pub fn next(&self, from: u32) -> Option<u32> {
        let first = from as usize / 64;
        let mut words = self
            .words
            .iter()
            .enumerate()
            .skip(first.max(self.low))
            .map(|(at, word)| {
                let low = if at == first { u64::MAX << (from % 64) } else { u64::MAX };
                (at, word & low)
            });
        let (at, word) = words.find(|(_, word)| *word != 0)?;
        Some(at as u32 * 64 + word.trailing_zeros())
    }

    /// Removes the pages after `last`.
    pub fn truncate(&mut self, last: u32) {
        self.words.truncate(last as usize / 64 + 1);
        if let Some(word) = self.words.get_mut(last as usize / 64) {
            *word &= u64::MAX >> (63 - last % 64);
        }
        self.low = self.low.min(self.words.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_set_is_a_set() {
        let mut set = PageSet::default();
        [1, 64, 5, 200].into_iter().for_each(|page| set.insert(page));
        assert!(set.contains(64) && !set.contains(63));
        assert_eq!(set.len(), 4);
        let mut taken = Vec::new();
        while let Some(page) = set.first() {
            taken.push(page);
            set.remove(page);
            if page == 5 {
                set.insert(2);
                set.truncate(64);
            }
        }
        assert_eq!(taken, [1, 5, 2, 64]);
        assert!(set.words.len() < 4);
    }
}
