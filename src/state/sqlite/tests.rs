use super::*;

#[test]
fn a_page_set_is_a_set() {
    let mut set = PageSet::default();
    [1, 64, 5, 200].into_iter().for_each(|page| set.insert(page));
    assert!(set.contains(64) && !set.contains(63));
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
