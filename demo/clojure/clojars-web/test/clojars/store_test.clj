(ns clojars.store-test
  (:require [clojars.store :as store]
            [clojars.support :refer [bytes-of put! with-store]]
            [clojure.java.io :as io]
            [clojure.test :refer [deftest is]]))

(defn- parts [store]
  (vec (.list (io/file (:root store) ".incoming"))))

(deftest a-part-is-not-there-until-it-is-kept
  (with-store [store]
    (let [part (store/open-part! store)]
      (store/write! part (bytes-of "hello") 5)
      (is (nil? (store/file store ["a"])))
      (is (empty? (store/files store)))
      (store/keep! store part ["a"] nil)
      (store/close-part! part)
      (is (= "hello" (slurp (store/file store ["a"]))))
      (is (empty? (parts store))))))

(deftest a-part-that-is-not-kept-is-gone
  (with-store [store]
    (store/close-part! (store/open-part! store))
    (is (empty? (parts store)))))

(deftest a-file-replaces-the-one-before
  (with-store [store]
    (put! store ["a"] "one")
    (put! store ["a"] "two")
    (is (= "two" (slurp (store/file store ["a"]))))))

(deftest what-dead-writers-have-left-is-removed-when-it-is-old
  (with-store [store]
    (let [old (io/file (:root store) ".incoming" "old")
          young (io/file (:root store) ".incoming" "young")]
      (run! #(spit % "x") [old young])
      (.setLastModified old (- (System/currentTimeMillis) (* 2 60 60 1000)))
      (store/open (:root store))
      (is (= ["young"] (parts store))))))

(deftest files-are-listed-with-their-paths
  (with-store [store]
    (store/make-directory! store ["org"])
    (put! store ["org" "a.jar"] "a")
    (put! store ["b.jar"] "b")
    (is (= ["b.jar" "org/a.jar"] (store/files store)))
    (is (= ["b.jar" "org/"] (store/entries store [])))))

(deftest paths-of-clients-are-cut-into-names
  (is (= ["org" "a.jar"] (store/segments "/org//./a.jar")))
  (is (= [] (store/segments "")))
  (is (nil? (store/segments "org/../../etc")))
  (is (nil? (store/segments ".incoming/x"))))
