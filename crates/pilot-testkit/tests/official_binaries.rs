//! The official programs can be had and answer; what they do with us is in `interop.rs`.

use pilot_testkit::isolate::isolated;
use pilot_testkit::official::{NEWEST, OLDER, Official, need_newest, need_older};

#[test]
fn both_official_releases_can_be_had() {
    isolated("both_official_releases_can_be_had", &[need_newest, need_older], || {
        for version in [NEWEST, OLDER] {
            let release = Official::obtain(version).expect("in the cache by now, without a network");
            assert_eq!(release.version(), version);
        }
    });
}
