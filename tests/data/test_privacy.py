import pytest

from radtower.data.privacy import (
    KINDS,
    PrivacyReport,
    count_identifiers,
    merge_reports,
    refuse_identifiers,
    refuse_identifying_ids,
    search_ids,
    search_texts,
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Compared with 12/03/2021.", "date"),
        ("Compared with 3.12.21.", "date"),
        ("Compared with 2021-03-12.", "date"),
        ("CT of 20210312 shows", "date"),
        ("Seen on March 12, 2021 already.", "date"),
        ("Seen on 12th of March already.", "date"),
        ("Since March 2021 stable.", "date"),
        ("Since MAR 12 stable.", "date"),
        ("Compared with the CT dated 12/03.", "date"),
        ("The CT dated 16.03. shows", "date"),
        ("Compared with the CT dated March,", "date"),
        ("Stable since July.", "date"),
        ("MRN: 12345", "record number"),
        ("Accession number A-998877.", "record number"),
        ("Number 4711000 was scanned.", "record number"),
        ("123-45-6789", "record number"),
        ("1.2.840.113619.2.55.3", "record number"),
        ("Called (555) 123-4567.", "phone number"),
        ("Called 555-123-4567.", "phone number"),
        ("Called +49 30 901820.", "phone number"),
        ("pager 12345", "phone number"),
        ("ext. 4711", "phone number"),
        ("mail j.doe@hospital.example.org please", "email"),
        ("see https://pacs.example.org/1", "web address"),
        ("Discussed with Dr. Miller.", "name"),
        ("Discussed with Dr Miller.", "name"),
        ("DISCUSSED WITH DR. MILLER.", "name"),
        ("Prof. Dr. Weiss was told.", "name"),
        ("Jane Doe, M.D.", "name"),
        ("Read: J. Smith MD", "name"),
        ("Assist.Prof.Dr.Rukiye", "name"),
        ("Dr. \u00c7elik was told.", "name"),
        ("Mrs. O'Neil returned.", "name"),
        ("Patient: Smith", "name"),
        ("The patient Smith returned.", "name"),
        ("Referring physician: Jones", "name"),
        ("Signed by Jones", "name"),
        ("A 93-year-old woman.", "age over 89"),
        ("A 101 yo man.", "age over 89"),
        ("at the age of 90", "age over 89"),
        ("This nonagenarian", "age over 89"),
        ("Seen in 03/2024 already.", "date"),
        ("03/2024: stable.", "date"),
        ("Seen in 03.2024 already.", "date"),
        ("Since 3.2024 stable.", "date"),
        ("The CT of 11-2023.", "date"),
        ("2024-03: stable.", "date"),
        ("Compared with 2024/03", "date"),
        ("Compared with 3/12.", "date"),
        ("Comparison to 12/3 shows", "date"),
        ("Called 555 123 4567.", "phone number"),
        ("Dr. J. Smith was told.", "name"),
        ("Dr J Smith was told.", "name"),
        ("Dr. J.R. Smith was told.", "name"),
        ("Dr \u015e. Y\u0131lmaz was told.", "name"),
        ("Dr. van der Berg was told.", "name"),
        ("Dr. de Vries was told.", "name"),
        ("DISCUSSED WITH DR SMITH", "name"),
        ("discussed with dr. smith", "name"),
        ("discussed with dr smith", "name"),
        ("MR. JONES WAS TOLD", "name"),
        ("mr. jones was told", "name"),
        ("dr. j. smith was told", "name"),
        ("mr smith was told", "name"),
        ("told mr king", "name"),
        ("mr ingram returned", "name"),
        ("Mr smith was told", "name"),
        ("ms. smith was told", "name"),
        ("DR. J. MAY CALLED", "name"),
        ("DR. MAY CALLED", "name"),
        ("Dr. d'Angelo was told.", "name"),
        ("Electronically signed by jane doe", "name"),
        ("MRS JONES RETURNED", "name"),
        ("Signed by: john smith", "name"),
        ("Electronically signed: John Smith MD", "name"),
        ("ELECTRONICALLY SIGNED BY JOHN SMITH", "name"),
        ("Name: John Smith", "name"),
        ("NAME: SMITH", "name"),
        ("Patient name: smith", "name"),
        ("93 M with cough.", "age over 89"),
        ("93F with cough.", "age over 89"),
        ("93 female with cough.", "age over 89"),
        ("Lives at 12 Main Street.", "address"),
        ("Lives at 221b Baker St. since then.", "address"),
        ("At 5 W. 42nd Street now.", "address"),
        ("12 MAIN STREET", "address"),
        ("Hauptstr. 12", "address"),
        ("Hauptstra\u00dfe 5a", "address"),
        ("P.O. Box 123", "address"),
        ("Boston, MA 02114", "address"),
        ("ZIP code 02114", "address"),
        ("Postcode SW1A 2AA", "address"),
        ("Home address: unknown road", "address"),
        ("Sent to 192.168.1.10 today.", "IP address"),
        ("2001:0db8:85a3:0000:0000:8a2e:0370:7334", "IP address"),
        ("License plate B-MW 1234", "vehicle number"),
        ("Number plate: 7ABC123", "vehicle number"),
        ("VIN 1HGCM82633A004352", "vehicle number"),
        ("Serial number AB12345", "device number"),
        ("Pacemaker s/n: 991234", "device number"),
        ("of 00:1A:2B:3C:4D:5E", "device number"),
        ("Account number 12345678", "account number"),
        ("Member id W1234", "account number"),
        ("Health plan number: H123456", "account number"),
        ("Driver's license D1234567", "account number"),
        ("Passport C01X00T47", "account number"),
        ("IBAN DE89370400440532013000", "account number"),
        ("DOE^JOHN^A", "name"),
        ("Attending physician: jane doe", "name"),
        ("Reviewed by: Jane Doe", "name"),
        ("Emergency contact: Jane Doe", "name"),
    ],
)
def test_finds_an_identifier_once(text, kind):
    assert count_identifiers(text) == {kind: 1}
    assert kind in KINDS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A nodule of 12.5 x 8.3 mm in segment 10, image 123 of series 4.",
        "Scoliosis at T12-L1; SUV 3.4; window 1500/-600 HU; ratio 1/2 to 3/4.",
        "Slices 120, 130 and 140 show it. Lesion 1-2-3 is smaller.",
        "Compared with the study of 2019, stable.",
        "Compared with XXXX. Discussed with Dr. XXXX at XXXX.",
        "Compared with ___. Dr. ___ was called at ___.",
        "Compared with [**2101-3-4**] by Dr. [**Last Name (STitle) 1**].",
        "MR imaging and MRI are advised. Correlate with MR. Findings are stable.",
        "An 89-year-old man. A 54 y/o woman. Density of 95 HU. 92 mm.",
        "Patient is rotated. Patient Position: supine. The patient has a drain. PATIENT IS SUPINE.",
        "It may be 3 mm. The lesion may 12 be.",
        "Doses of 1000 mg, volume of 250,000 cells, 123456.5 units.",
        "Grown from 1.5 to 2.5 cm. In may cases, of marches.",
        "Market 5 and Decent 12. Nodules of 5-10-15 mm. Duchenne MD. Seen by an MD. The MD was told.",
        "MR. FINDINGS: NONE. MR. NO LESION. MR IMAGING IS ADVISED. mr imaging. mr. findings are stable.",
        "MR. Correlate. MR ANGIOGRAPHY. MR. The liver is normal. MR. IMPRESSION: CLEAR.",
        "Enhancement 3/12 and 3/4 lobes. 3/12 nodules. Found in 3/12 of nodes. From 3 to 12 mm.",
        "Compared with 3/12 nodes, stable.",
        "Intervals of 555 123 456 mm. Sizes 120 130 1400 mm.",
        "93 mm, 93 Mm, 93 ml, 93 F-18 units, 93 MBq, 93 m/s, 93 FDG. TC-99M, I-123 F.",
        "DR CHEST: clear. DR. was told. The DR IMAGES are clear.",
        "File name: none. Signed by: XXXX. Electronically signed: XXXX",
        "The radiologist is to correlate. Electronically signed.",
        "Dr. XXXX, Dr. ___ and Dr. [**Name**]. Dr. was told. The dr was told.",
        "Ratio 12/2000 HU. Window 03/1500.",
        "Radiologist to review. Signed by the resident.",
        "mr examination. mr knee. mr elastography. mr arthrograms. mr compatible. mild mr noted.",
        "mr severity. mr fingerprinting, mr segmentation, mr velocity, moderate mr requires, mr images.",
        "mr spectroscopy, mr venography, mr scanner, mr shows a mass, mr jet, mr features, mr demonstrates.",
        "history of ms. findings are stable. echo time 80 ms. repeated. ms plaques. te of 90ms. relaxed.",
        "12.2010 cm, 3.2034 units, of 1.2004, 10-2000 HU, score of 2014.05, T12-2010, A-10-2010, 10.2010-3.",
        "2024-13, 2024-3, 2024/3, 2024-031, 2010-12a, 12.2010.5",
        "12 Chest CT. At LA 45 mm, MA 3 mm, PA 30 mm. At 12:30:45. Postcode and address are unknown.",
        "License: apache-2.0. license cc-by-nc-sa-4.0. version 1.2.3.4. and 1.2.3.456.",
        "Plate number 3. Series number 4, serial images. Lot of nodules. The plan is 12 weeks. Insurance.",
        "Read by the resident. T1 2FS. x^2. The mother was told. Reviewed by: XXXX. 12 SERIES STREET.",
    ],
)
def test_leaves_measures_years_and_placeholders_alone(text):
    assert count_identifiers(text) == {}


def test_counts_by_kind_and_names_reports_but_never_text():
    report = search_texts(
        [
            ("r1", "Seen on 2021-03-12 and on 2021-04-13 by Dr. Miller."),
            ("r2", "Clear lungs."),
            ("r3", "Aged 95."),
            ("r1", "mail a@b.org"),
        ]
    )
    assert report.counts == {"email": 1, "date": 2, "name": 1, "age over 89": 1}
    assert report.kinds_by_id == {"r1": ("email", "date", "name"), "r3": ("age over 89",)}
    assert (report.num_texts, report.num_matches) == (4, 5)
    assert report.describe() == "1 email, 2 date, 1 name, 1 age over 89"
    for secret in ("2021", "Miller", "a@b"):
        assert secret not in repr(report)
    assert PrivacyReport().describe() == "none"


class Cities:
    """An analyzer of two words."""

    def find(self, text):
        return ["city" for word in text.split() if word in ("Ulm", "Bonn")]


def test_an_analyzer_of_ones_own_searches_as_well():
    texts = [("r1", "Seen in Ulm and Bonn on 2021-03-12."), ("r2", "Clear in Essen.")]
    report = search_texts(texts, [Cities()])
    assert report.counts == {"date": 1, "city": 2}
    assert list(report.counts) == ["date", "city"]
    assert report.kinds_by_id == {"r1": ("date", "city")}


def test_words_that_come_again_are_searched_once():
    seen = []

    class Listening:
        def find(self, text):
            seen.append(text)
            return ["word"]

    texts = [(name, text) for name in "abc" for text in ("present", "absent", "x" * 33)]
    assert search_texts(texts, [Listening()]).counts == {"word": 9}
    assert sorted(seen) == sorted(["present", "absent"] + ["x" * 33] * 3)


def test_reports_of_several_searches_add_up():
    first = search_texts([("a", "Dr. Miller"), ("b", "Clear.")])
    second = search_texts([("a", "2021-03-12, 2021-03-13 in Ulm"), ("c", "Aged 95.")], [Cities()])
    both = merge_reports(first, second)
    assert both.counts == {"date": 2, "name": 1, "age over 89": 1, "city": 1}
    assert both.kinds_by_id == {"a": ("date", "name", "city"), "c": ("age over 89",)}
    assert both.num_texts == 4
    assert merge_reports() == PrivacyReport()


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("train_1_a_1.nii.gz", ()),
        ("phantom-0001-1", ()),
        ("trn00001", ()),
        ("CXR1000_IM-0003-1001", ()),
        ("mr_brain01_s2", ()),
        ("scan_mr_s001", ()),
        ("2020-01", ("date",)),
        ("study_20200131_a", ("date",)),
        ("2020-01-31", ("date",)),
        ("0012345678", ("record number",)),
        ("scan_MRN12345_a", ("record number",)),
        ("s50414267", ("record number",)),
        ("1.2.840.113619.2.55.3", ("record number",)),
    ],
)
def test_ids_like_record_numbers_and_dates_are_found(name, kinds):
    assert search_ids([name]).kinds_by_id.get(name, ()) == kinds


def test_matches_must_be_accepted_to_the_number():
    report = search_texts([("r1", "Dr. Miller, 2021-03-12"), ("r2", "Clear lungs."), ("r3", "Dr. Jones")])
    for number, wanted in ((0, "no match"), (2, "exactly 2 matches"), (4, "exactly 4 matches")):
        with pytest.raises(ValueError, match=rf"must hold {wanted} .* got 3 in 2 of 3 texts") as e:
            refuse_identifiers(report, number)
        assert "(1 date, 2 name)" in str(e.value)
        assert "Miller" not in str(e.value)
    refuse_identifiers(report, 3)
    refuse_identifiers(search_texts([("r2", "Clear lungs.")]))


def test_ids_that_look_identifying_must_be_accepted():
    report = search_ids(["a", "12345678", "2020-01-31"])
    with pytest.raises(ValueError, match=r"got 2 of 3 that do \(1 date, 1 record number\)"):
        refuse_identifying_ids(report, is_accepted=False)
    refuse_identifying_ids(report, is_accepted=True)
    refuse_identifying_ids(search_ids(["a"]), is_accepted=False)
